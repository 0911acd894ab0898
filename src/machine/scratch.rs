//! Working space of a thread: kept from call to call, so that a training step allocates nothing.
use std::cell::RefCell;

thread_local! {
    static SPACE: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Lends `f` this thread's space of `len` elements, with whatever was left in it. Calls do not nest.
pub fn scratch<F: bytemuck::Pod, R>(len: usize, f: impl FnOnce(&mut [F]) -> R) -> R {
    SPACE.with_borrow_mut(|space| {
        let words = (len * size_of::<F>()).div_ceil(size_of::<u64>());
        if space.len() < words {
            space.resize(words, 0);
        }
        f(&mut bytemuck::cast_slice_mut(&mut space[..words])[..len])
    })
}
