//! The host's memory for one program: every tensor a span of one allocation.
use super::Real;
use half::f16;
use std::cell::Cell;

/// Where a tensor lies in the allocation, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte; a multiple of [`ALIGN`] unless the tensor is part of another.
    pub at: usize,
    /// Bytes.
    pub len: usize,
}

impl Span {
    fn end(self) -> usize {
        self.at + self.len
    }
    fn meets(self, other: Span) -> bool {
        self.len > 0 && other.len > 0 && self.at < other.end() && other.at < self.end()
    }
}

/// Alignment of tensors: a cache line.
pub const ALIGN: usize = 64;

/// A tensor's number in its program, as memory knows it.
pub trait Slot: Copy {
    /// The number.
    fn slot(self) -> usize;
}

/// What one operation may touch, by slot.
#[derive(Clone, Debug, Default)]
pub struct Permit {
    /// Slots it reads.
    pub reads: Vec<usize>,
    /// Slots it writes; one that is in `reads` too is updated in place.
    pub writes: Vec<usize>,
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; ALIGN]);

/// The memory of one program, in the precision `F`.
///
/// An operation asks for its tensors by [`read`](Mem::read) and [`write`](Mem::write) and is held to what it
/// declared. The slices are shared out safely because spans that an operation writes meet no other span it
/// touches (checked once, in [`Mem::new`]) and because each is handed out at most once per operation.
pub struct Mem<F> {
    lines: Box<[Cell<Line>]>,
    spans: Vec<Span>,
    permits: Vec<Permit>,
    running: usize,
    written: Vec<Cell<bool>>,
    real: std::marker::PhantomData<F>,
}

impl<F: Real> Mem<F> {
    /// Memory of `bytes` bytes, all zero, for tensors at `spans`, touched by operations with `permits`.
    ///
    /// # Panics
    /// When a span is out of bounds or misaligned, or an operation's write meets another of its spans.
    pub fn new(bytes: usize, spans: Vec<Span>, permits: Vec<Permit>) -> Self {
        let lines: Box<[Cell<Line>]> = vec![Cell::new(Line([0; ALIGN])); bytes.div_ceil(ALIGN)].into();
        for span in &spans {
            assert!(span.end() <= lines.len() * ALIGN, "{span:?} is out of bounds");
            assert!(span.at.is_multiple_of(size_of::<F>()), "{span:?} is misaligned");
        }
        for (i, permit) in permits.iter().enumerate() {
            for (n, &w) in permit.writes.iter().enumerate() {
                let others = permit.reads.iter().filter(|&&r| r != w).chain(&permit.writes[n + 1..]);
                for &o in others {
                    assert!(!spans[w].meets(spans[o]), "operation {i}: slots {w} and {o} share memory");
                }
            }
        }
        let written = vec![Cell::new(false); spans.len()];
        Mem { lines, spans, permits, running: usize::MAX, written, real: std::marker::PhantomData }
    }
    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.lines.len() * ALIGN
    }
    /// Says that operation `op` runs next, and may touch what it declared.
    pub fn begin(&mut self, op: usize) {
        self.running = op;
        self.permits[op].writes.iter().for_each(|&w| self.written[w].set(false));
    }
    /// A tensor that the running operation declared it reads.
    #[track_caller]
    pub fn read(&self, t: impl Slot) -> &[F] {
        self.readable(t.slot());
        self.slice(t.slot())
    }
    /// An index tensor that the running operation declared it reads.
    #[track_caller]
    pub fn read_indices(&self, t: impl Slot) -> &[u32] {
        self.readable(t.slot());
        self.slice(t.slot())
    }
    /// A stored volume that the running operation declared it reads.
    #[track_caller]
    pub fn read_stored(&self, t: impl Slot) -> &[f16] {
        self.readable(t.slot());
        self.slice(t.slot())
    }
    /// A tensor that the running operation declared it writes; it holds what was there before.
    #[track_caller]
    #[allow(
        clippy::mut_from_ref,
        reason = "handed out once per operation, disjoint from all else it touches"
    )]
    pub fn write(&self, t: impl Slot) -> &mut [F] {
        self.writable(t.slot())
    }
    /// An index tensor that the running operation declared it writes.
    #[track_caller]
    #[allow(
        clippy::mut_from_ref,
        reason = "handed out once per operation, disjoint from all else it touches"
    )]
    pub fn write_indices(&self, t: impl Slot) -> &mut [u32] {
        self.writable(t.slot())
    }
    /// The host's view of a tensor, between runs.
    pub fn host<T: bytemuck::Pod>(&self, t: impl Slot) -> &[T] {
        self.slice(t.slot())
    }
    /// The host's own access to a tensor of reals or indices, between runs.
    pub fn host_mut<T: bytemuck::Pod>(&mut self, t: impl Slot) -> &mut [T] {
        let Span { at, len } = self.spans[t.slot()];
        // SAFETY: in bounds and aligned (checked in `new`; `T` is no larger than `F` or is `F`), and `&mut self`
        // makes it exclusive.
        unsafe {
            assert!(align_of::<T>() <= ALIGN && at.is_multiple_of(size_of::<T>()));
            let base = self.lines.as_ptr().cast::<u8>().cast_mut().add(at);
            std::slice::from_raw_parts_mut(base.cast(), len / size_of::<T>())
        }
    }
    /// Fills a dead tensor with NaN (and the largest index), so that reading it shows.
    pub fn poison(&mut self, t: impl Slot) {
        self.host_mut::<u8>(t).fill(0xFF);
    }

    #[track_caller]
    #[allow(
        clippy::mut_from_ref,
        reason = "handed out once per operation, disjoint from all else it touches"
    )]
    fn writable<T: bytemuck::Pod>(&self, t: usize) -> &mut [T] {
        assert!(
            self.permits[self.running].writes.contains(&t),
            "slot {t} is not among what the operation writes"
        );
        assert!(!self.written[t].replace(true), "slot {t} is written twice by one operation");
        let Span { at, len } = self.spans[t];
        assert!(at.is_multiple_of(align_of::<T>()));
        // SAFETY: in bounds (checked in `new`) and aligned, initialised (zeroed at first, and every bit pattern is a
        // `T`); exclusive: no other span of this operation meets it (`new`), it is handed out once (`written`), and
        // slices of earlier operations are gone, since `begin` takes `&mut self`.
        unsafe {
            let base = self.lines.as_ptr().cast::<u8>().cast_mut().add(at);
            std::slice::from_raw_parts_mut(base.cast(), len / size_of::<T>())
        }
    }

    fn readable(&self, t: usize) {
        assert!(
            self.permits[self.running].reads.contains(&t),
            "slot {t} is not among what the operation reads"
        );
        assert!(
            !self.permits[self.running].writes.contains(&t),
            "slot {t} is updated in place: ask for it with `write`"
        );
    }
    fn slice<T: bytemuck::Pod>(&self, t: usize) -> &[T] {
        let Span { at, len } = self.spans[t];
        assert!(at.is_multiple_of(align_of::<T>()));
        // SAFETY: in bounds and aligned, initialised; while an operation runs, only spans it declared as written
        // are handed out mutably, and those meet no span it reads (checked in `new`).
        unsafe {
            let base = self.lines.as_ptr().cast::<u8>().add(at);
            std::slice::from_raw_parts(base.cast(), len / size_of::<T>())
        }
    }
}
