//! The same bits whatever the number of threads, and from run to run.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
mod training;

use gyrus::machine::philox::{Philox, Purpose};
use gyrus::machine::{Into, Mat, MatMut, Threads, gemm};
use training::Training;

/// Runs `f` in a pool of `threads`.
fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// `f` with 1, 2, 2 and 3 threads.
fn in_all_pools<T: Send + PartialEq>(f: impl Fn() -> T + Sync) -> bool {
    let one = with_threads(1, &f);
    [2, 2, 3].into_iter().all(|threads| with_threads(threads, &f) == one)
}

#[test]
fn products_have_the_same_bits() {
    let random = |len: usize, sample: u32| -> Vec<f32> {
        let mut r = Philox::new(3, Purpose::Test, 0, sample);
        (0..len).map(|_| r.normal()).collect()
    };
    // Below and above the sizes at which a product is split; extents that are no multiple of a tile.
    for [m, n, k] in [[1, 1, 1], [7, 33, 5], [64, 64, 64], [150, 577, 192], [38, 192, 768], [301, 97, 1025]] {
        let (a, b, c) = (random(m * k, 0), random(k * n, 1), random(m * n, 2));
        type Layout = for<'a> fn(&'a [f32], &'a [f32], [usize; 3]) -> [Mat<'a, f32>; 2];
        let layouts: [(&str, Layout); 3] = [
            ("nn", |a, b, [m, n, k]| [Mat::rows(a, [m, k]), Mat::rows(b, [k, n])]),
            ("nt", |a, b, [m, n, k]| [Mat::rows(a, [m, k]), Mat::rows(b, [n, k]).t()]),
            ("tn", |a, b, [m, n, k]| [Mat::rows(a, [k, m]).t(), Mat::rows(b, [k, n])]),
        ];
        for (name, layout) in layouts {
            for into in [Into::Replace, Into::Add] {
                let product = || {
                    let mut c = c.clone();
                    let [a, b] = layout(&a, &b, [m, n, k]);
                    gemm(MatMut::rows(&mut c, [m, n]), a, b, 1.0, into, Threads::All);
                    c.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
                };
                assert!(in_all_pools(product), "{name} {m} x {n} x {k}, {into:?}");
            }
        }
    }
}

#[test]
fn three_training_steps_have_the_same_bits() {
    assert!(in_all_pools(|| {
        let mut training = Training::new();
        (0..3).for_each(|_| training.step());
        let bits = |t| training.cpu.read(t).iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        let params = bits(training.params);
        assert!(params.iter().all(|&b| f32::from_bits(b).is_finite()));
        (params, bits(training.loss))
    }));
}
