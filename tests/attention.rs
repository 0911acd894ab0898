//! Attention's kernels on the emulator by FlashAttention's rule: at most twice as far from the `f64` definition as
//! attention done plainly in bf16. Runs with `--features emulator`.
#![cfg(feature = "emulator")]
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use gyrus::cases::plain_attention;
use gyrus::machine::Driver;
use gyrus::machine::emulator::{Emulator, Schedule};
use gyrus::machine::philox::{Philox, Purpose};
use gyrus::program::{Cpu, Cuda, Machine, backward};
use gyrus::tape::{Dtype, Tape};
use half::bf16;
use std::rc::Rc;

fn round(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// Holds one shape, B, L, H, width, to the rule; `value` makes qkv of normal numbers, given which of q, k, v and which
/// token each is of.
fn hold(shape: [usize; 4], keys: Option<&[u32]>, value: impl Fn(f32, usize, usize) -> f32) {
    let [batch, length, heads, width] = shape;
    let mut t = Tape::default();
    let qkv = t.param("qkv", &[batch, length, 3 * heads * width]);
    let dy = t.input_as(&[batch, length, heads * width], Dtype::Activation);
    let lengths = keys.map(|_| t.indices(&[batch]));
    let y = gyrus::ops::attention(&mut t, qkv, heads, lengths);
    let dqkv = backward(&mut t, &[(y, dy)])[&qkv];

    let mut random = Philox::new(1, Purpose::Test, 0, 0);
    let place = |i: usize| (i / (heads * width) % 3, i / (3 * heads * width) % length);
    let qkv_values: Vec<f32> =
        (0..t.len(qkv)).map(|i| round(value(random.normal(), place(i).0, place(i).1))).collect();
    let dy_values: Vec<f32> = (0..t.len(dy)).map(|_| round(random.normal())).collect();

    let mut exact = Cpu::<f64>::new(t.clone(), &[y, dqkv]);
    exact.write(qkv, &qkv_values.iter().copied().map(f64::from).collect::<Vec<_>>());
    exact.write(dy, &dy_values.iter().copied().map(f64::from).collect::<Vec<_>>());
    if let (Some(lengths), Some(keys)) = (lengths, keys) {
        exact.write_indices(lengths, keys);
    }
    exact.run();
    let (plain_y, plain_dqkv) = plain_attention(&qkv_values, keys, &dy_values, shape);

    let emulator = || Emulator::new(Schedule::default());
    for (device, emulator) in [("Hopper", emulator()), ("before", emulator().before_hopper())] {
        let driver: Rc<dyn Driver> = Rc::new(emulator);
        let mut kernels = Cuda::new(driver, t.clone(), &[y, dqkv]).unwrap();
        kernels.write(qkv, &qkv_values).unwrap();
        kernels.write(dy, &dy_values).unwrap();
        if let (Some(lengths), Some(keys)) = (lengths, keys) {
            kernels.write_indices(lengths, keys).unwrap();
        }
        kernels.run().unwrap();
        let (got_y, got_dqkv) = (kernels.read(y).unwrap(), kernels.read(dqkv).unwrap());
        bounded(&format!("{device} {shape:?} y"), &got_y, &plain_y, exact.read(y), |_| true);
        for (p, name) in ["dq", "dk", "dv"].into_iter().enumerate() {
            let what = format!("{device} {shape:?} {name}");
            bounded(&what, &got_dqkv, &plain_dqkv, exact.read(dqkv), |i| place(i).0 == p);
        }
    }
}

/// `max |got - exact| <= 2 max |plain - exact| + 2 max |(exact + 0.3 - 0.3) - exact|`, the last computed in bf16.
fn bounded(what: &str, got: &[f32], plain: &[f32], exact: &[f64], of: impl Fn(usize) -> bool) {
    let largest = |x: &dyn Fn(usize) -> f64| {
        (0..exact.len())
            .filter(|&i| of(i))
            .map(x)
            .fold(0.0, |a: f64, b| if b.is_nan() { b } else { a.max(b) })
    };
    let error = largest(&|i| (f64::from(got[i]) - exact[i]).abs());
    let base = largest(&|i| (f64::from(plain[i]) - exact[i]).abs());
    let least = largest(&|i| (f64::from(round(round(round(exact[i] as f32) + 0.3) - 0.3)) - exact[i]).abs());
    println!("{what}: {error:.1e}, plainly {base:.1e}");
    assert!(error <= 2.0 * base + 2.0 * least, "{what}: {error:.2e}, plainly {base:.2e}");
}

#[test]
fn lengths_round_every_block() {
    for length in [1, 2, 7, 54, 64, 65, 96, 97, 128, 129, 160, 161, 192, 257, 320, 321, 401] {
        hold([1, length, 2, 64], None, |x, _, _| x);
    }
}

#[test]
fn sequences_with_keys_of_their_own() {
    for (length, keys) in [(33, [33, 0, 1]), (150, [64, 0, 65]), (250, [1, 33, 249]), (330, [1, 130, 329])] {
        for width in [24, 64] {
            hold([3, length, 1, width], Some(&keys), |x, _, _| x);
        }
    }
}

#[test]
fn one_key_that_takes_all_and_keys_that_share_alike() {
    for length in [50, 170, 340] {
        hold([1, length, 1, 64], None, |x, part, token| if part == 1 && token == 20 { 30.0 * x } else { x });
        hold([1, length, 1, 64], None, |x, part, _| if part == 0 { 0.0 } else { x });
    }
}

/// Every score far below zero, so that exp(-log_sum) is infinite and a key beyond the length must not meet it.
#[test]
fn scores_far_below_zero() {
    for length in [50, 170, 340] {
        let value = |x: f32, part, _| match part {
            0 => 4.0 + x,
            1 => -4.0 + x,
            _ => x,
        };
        hold([1, length, 1, 64], Some(&[length as u32 - 7]), value);
    }
}
