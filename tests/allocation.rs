//! A training step allocates nothing of its own once it is warm.
mod training;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use training::Training;

struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        BYTES.fetch_add(layout.size(), Relaxed);
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of one step: how many, their bytes, the largest.
fn one_step(training: &mut Training) -> [usize; 3] {
    [&CALLS, &BYTES, &LARGEST].iter().for_each(|counter| counter.store(0, Relaxed));
    training.step();
    [&CALLS, &BYTES, &LARGEST].map(|counter| counter.load(Relaxed))
}

#[test]
fn a_warm_training_step_allocates_nothing() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    for threads in [1, 2] {
        let counts = pool(threads).install(|| {
            let mut training = Training::new();
            (0..2).for_each(|_| training.step());
            [(); 3].map(|()| one_step(&mut training))
        });
        println!("{threads} thread(s): [allocations, bytes, largest] of three steps: {counts:?}");
    }
}
