//! A new operation, from its formula to its checked gradient: `softplus(x) = ln(1 + exp(x))`.
//!
//! Run with `cargo run --example new_operation`.
use gyrus::cases::{Case, check};
use gyrus::machine::{Mem, Real};
use gyrus::tape::{Adjoint, Define, Io, Op, Tape, Tensor};

/// Records `ln(1 + exp(x))`. Recording computes nothing: it makes a name for the result and appends the operation.
fn softplus(t: &mut Tape, x: Tensor) -> Tensor {
    let y = t.like(x);
    t.push(Softplus { x, y });
    y
}

#[derive(Clone, Copy, Debug)]
struct Softplus {
    x: Tensor,
    y: Tensor,
}

impl Op for Softplus {
    /// What it reads and writes. Memory is planned by this list, and touching anything else panics.
    fn io(&self) -> Io {
        Io::new([self.x], [self.y])
    }
    /// The gradient is one more operation. Nobody may want it, so `d.of(y)` can be `None`.
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dy) = d.of(self.y) else { return };
        let dx = d.tape.like(self.x);
        d.tape.push(SoftplusGrad { of: *self, dy, dx });
        d.add(self.x, dx);
    }
}

/// The definition, for any precision: `max(x, 0) + ln(1 + exp(-|x|))`, which cannot overflow.
impl<F: Real> Define<F> for Softplus {
    fn define(&self, m: &Mem<F>) {
        for (y, x) in m.write(self.y).iter_mut().zip(m.read(self.x)) {
            *y = x.max(F::ZERO) + F::of((-x.abs()).f64().exp().ln_1p());
        }
    }
}

/// `dx = dy / (1 + exp(-x))`.
#[derive(Debug)]
struct SoftplusGrad {
    of: Softplus,
    dy: Tensor,
    dx: Tensor,
}

impl Op for SoftplusGrad {
    fn io(&self) -> Io {
        Io::new([self.of.x, self.dy], [self.dx])
    }
}

impl<F: Real> Define<F> for SoftplusGrad {
    fn define(&self, m: &Mem<F>) {
        let (x, dy) = (m.read(self.of.x), m.read(self.dy));
        for (dx, (x, dy)) in m.write(self.dx).iter_mut().zip(x.iter().zip(dy)) {
            *dx = *dy / (F::ONE + (-*x).exp());
        }
    }
}

fn main() {
    // A case is a small program with values; parameters are what gradients are taken of.
    let case = Case::new("softplus", "5 x 7, read twice", |r| {
        let x = r.param(&[5, 7]);
        let y = softplus(&mut r.tape, x);
        gyrus::ops::add(&mut r.tape, x, y).into()
    });
    // Checked: the gradient against central differences in f64, and f32 against f64, dead temporaries NaN.
    let outcome = check(&case);
    println!(
        "{}: {} derivatives, worst error {:.1e}; f32 differs by {:.1e}: {}",
        outcome.name,
        outcome.derivatives,
        outcome.gradient.expect("there is a parameter"),
        outcome.f32,
        if outcome.passed() { "passed" } else { "FAILED" }
    );
    assert!(outcome.passed());
}
