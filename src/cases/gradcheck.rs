//! Gradients against central differences in `f64`, and `f32` against `f64`.
use super::{Case, Outputs, Recorder};
use crate::machine::Real;
use crate::machine::philox::{Philox, Purpose};
use crate::program::plan::lifetimes;
use crate::program::{Cpu, backward};
use crate::tape::{Precision, Tape, Tensor};
use std::collections::BTreeSet;

/// Largest relative error of a gradient against differences, whose own error at the step taken is below a tenth of it.
pub const GRADIENT_BOUND: f64 = 1e-6;

/// Largest error of an `f32` result, relative to the largest magnitude of its tensor: a rounding is 2⁻²⁴, and the
/// longest chain here, a training step with its gradients, amplifies about a thousand of them.
pub const F32_BOUND: f64 = 1e-4;

/// Step of the five-point central difference `(8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12 h`: its truncation error
/// falls with h⁴, so the step can be large enough to keep rounding out of the quotient.
const STEP: f64 = 2e-4;

/// Elements of each parameter that are perturbed: all of a small one, or the largest derivatives and others at
/// random.
const ELEMENTS: usize = 24;

/// How a case fared.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Outcome {
    /// The case's name.
    pub name: String,
    /// Its shape.
    pub shape: String,
    /// Worst relative error of a gradient; `None` where there is none to check.
    pub gradient: Option<f64>,
    /// Derivatives checked.
    pub derivatives: usize,
    /// Worst error of `f32` relative to the largest magnitude of the tensor.
    pub f32: f64,
}

impl Outcome {
    /// Whether both errors are within their bounds. NaN is not.
    pub fn passed(&self) -> bool {
        self.gradient.is_none_or(|e| e <= GRADIENT_BOUND) && self.f32 <= F32_BOUND
    }
}

/// Checks one case.
pub fn check(case: &Case) -> Outcome {
    let program = Differentiated::of(case);
    let (gradient, derivatives) = program.gradient_error();
    Outcome {
        name: case.name.to_owned(),
        shape: case.shape.clone(),
        gradient: (derivatives > 0).then_some(gradient),
        derivatives,
        f32: program.f32_error(),
    }
}

/// The program of a case with its backward pass.
pub fn program(case: &Case) -> Tape {
    Differentiated::of(case).recorder.tape
}

/// A case with its backward pass.
pub(super) struct Differentiated {
    pub(super) recorder: Recorder,
    seeds: Vec<(Tensor, Tensor)>,
    gradients: Vec<(Tensor, Tensor)>,
    forward: usize,
    /// Outputs and gradients.
    pub(super) kept: Vec<Tensor>,
    /// Outputs of indices.
    pub(super) indices: Vec<Tensor>,
}

impl Differentiated {
    pub(super) fn of(case: &Case) -> Self {
        let (mut recorder, outputs) = case.record();
        let forward = recorder.tape.ops().len();
        let seeds: Vec<(Tensor, Tensor)> =
            outputs.differentiable.iter().map(|&y| (y, recorder.input_like(y))).collect();
        let gradients: Vec<(Tensor, Tensor)> = backward(&mut recorder.tape, &seeds).into_iter().collect();
        let Outputs { differentiable, other, indices } = outputs;
        let kept = differentiable.into_iter().chain(other).chain(gradients.iter().map(|g| g.1)).collect();
        Differentiated { recorder, seeds, gradients, forward, kept, indices }
    }
    fn machine<F: Precision>(&self) -> Cpu<F> {
        let tape: Tape = self.recorder.tape.clone();
        let lives = lifetimes(&tape, &[&self.kept[..], &self.indices].concat());
        let mut cpu = Cpu::poisoned(tape, &lives);
        self.recorder.load(&mut cpu).expect("a host does not fail");
        cpu
    }
    /// The worst relative error, and how many derivatives were compared.
    fn gradient_error(&self) -> (f64, usize) {
        let mut cpu = self.machine::<f64>();
        cpu.run();
        let exact: Vec<Vec<f64>> = self.gradients.iter().map(|g| cpu.read(g.1).to_vec()).collect();
        let (mut worst, mut count) = (0.0_f64, 0);
        for (&(p, _), exact) in self.gradients.iter().zip(&exact) {
            let largest = exact.iter().fold(0.0_f64, |m, g| m.max(g.abs()));
            let x = cpu.read(p).to_vec();
            for i in sample(exact) {
                let mut objective = |xi: f64| {
                    let mut x = x.clone();
                    x[i] = xi;
                    cpu.write(p, &x);
                    cpu.run_ops(0..self.forward);
                    self.objective(&cpu)
                };
                let mut span = |h: f64| objective(x[i] + h) - objective(x[i] - h);
                let numeric = (8.0 * span(STEP) - span(2.0 * STEP)) / (12.0 * STEP);
                let size = numeric.abs().max(exact[i].abs()).max(1e-3 * largest).max(1e-6);
                let error = (numeric - exact[i]).abs() / size;
                worst = larger(worst, error);
                count += 1;
            }
            cpu.write(p, &x);
        }
        (worst, count)
    }
    /// The sum of outputs times their seeds: the number whose derivative the recorded gradient is.
    fn objective(&self, cpu: &Cpu<f64>) -> f64 {
        let inner = |&(y, dy): &(Tensor, Tensor)| -> f64 {
            cpu.read(y).iter().zip(cpu.read(dy)).map(|(y, dy)| y * dy).sum()
        };
        self.seeds.iter().map(inner).sum()
    }
    fn f32_error(&self) -> f64 {
        let (mut reference, mut product) = (self.machine::<f64>(), self.machine::<f32>());
        reference.run();
        product.run();
        if self.indices.iter().any(|&t| reference.read_indices(t) != product.read_indices(t)) {
            return f64::INFINITY;
        }
        let errors = self.kept.iter().map(|&t| relative_error(product.read(t), reference.read(t)));
        errors.fold(0.0, larger)
    }
}

/// The larger of two errors; NaN is the largest.
pub(super) fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Largest difference over the largest magnitude of `expected`; NaN if there is a NaN.
pub fn relative_error<F: Real>(got: &[F], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
    let error = got.iter().zip(expected).map(|(g, e)| (g.f64() - e).abs()).fold(0.0, larger);
    if error == 0.0 { 0.0 } else { error / largest.max(1e-30) }
}

/// The elements that are perturbed: the largest derivatives, and others at random.
fn sample(exact: &[f64]) -> BTreeSet<usize> {
    if exact.len() <= ELEMENTS {
        return (0..exact.len()).collect();
    }
    let mut by_size: Vec<usize> = (0..exact.len()).collect();
    by_size.sort_by(|&a, &b| exact[b].abs().total_cmp(&exact[a].abs()));
    let mut random = Philox::new(2, Purpose::Test, exact.len() as u64, 0);
    let others = std::iter::repeat_with(|| random.below(exact.len())).take(ELEMENTS / 2);
    by_size[..ELEMENTS / 2].iter().copied().chain(others).collect()
}
