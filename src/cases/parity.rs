//! Kernels against definitions: each case with its gradients on a CUDA device, held to the `f64` definition.
use super::Case;
use super::gradcheck::{Differentiated, F32_BOUND, larger};
use crate::machine::{Driver, cuda};
use crate::program::{Cpu, Cuda, Machine};
use crate::tape::{Dtype, Tape};
use std::rc::Rc;

/// Largest error of a result in bf16, or of one computed from rounded results, relative to its own magnitude and the
/// largest of its tensor together: one spacing of bf16. Definition and kernel see the same rounded inputs and store the
/// same roundings, so they differ where a sum lies close to the middle between two numbers of bf16, and by what that
/// changes further on.
pub const BF16_BOUND: f64 = 1.0 / 128.0;

/// Largest `1 - 2 <x, y> / (|x|² + |y|²)` between a tensor in bf16 and its reference: a relative error of 0.45 %. It sees
/// many small errors, as the bound above sees one large.
pub const NORM_BOUND: f64 = 1e-5;

/// By how much a chain of many operations may exceed the bound above, and the square of it the bound below: one result
/// that is rounded up instead of down moves all that follows. Whole models of two blocks were seen at 1.6, and 2² of the
/// norm.
pub const CHAIN: f64 = 4.0;

/// How a case fared on a device.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Parity {
    /// The case's name.
    pub name: String,
    /// Its shape.
    pub shape: String,
    /// The error that comes closest to its bound.
    pub error: f64,
    /// That bound.
    pub bound: f64,
    /// The largest distance of a tensor from its reference by [`NORM_BOUND`]'s measure.
    pub norm: f64,
    /// Its bound.
    pub norm_bound: f64,
    /// Runs that were compared bit for bit, the replayed graph among them.
    pub runs: usize,
    /// How many differed from the first.
    pub differing: usize,
    /// Tensors beside which something was written.
    pub damaged: usize,
    /// What the device said, if it failed.
    pub failure: Option<String>,
    /// A hash of the first run's results.
    pub digest: String,
}

impl Parity {
    /// Whether all is within bounds. NaN is not.
    pub fn passed(&self) -> bool {
        let exact = self.differing == 0 && self.damaged == 0 && self.failure.is_none();
        exact && self.error <= self.bound && self.norm <= self.norm_bound
    }
}

/// Runs `case` on the device of `driver`: once launch by launch, then `repeats` times more and once as a graph, which
/// all have to give the same bits. With `guards`, every tensor lies between guard bytes.
pub fn compare(case: &Case, driver: &Rc<dyn Driver>, repeats: usize, guards: bool) -> Parity {
    let (name, shape) = (case.name.to_owned(), case.shape.clone());
    match measure(case, driver, repeats, guards) {
        Ok(parity) => Parity { name, shape, ..parity },
        Err(error) => Parity { name, shape, failure: Some(error.to_string()), ..Parity::default() },
    }
}

fn measure(case: &Case, driver: &Rc<dyn Driver>, repeats: usize, guards: bool) -> cuda::Result<Parity> {
    let program = Differentiated::of(case);
    let tape = &program.recorder.tape;
    let (kept, ops) = ([&program.kept[..], &program.indices].concat(), 0..tape.ops().len());

    let mut reference = Cpu::<f64>::rounded(tape.clone(), &kept);
    program.recorder.load_rounded(&mut reference)?;
    reference.run();

    let mut cuda = Cuda::checked(Rc::clone(driver), tape.clone(), guards)?;
    let results = |cuda: &Cuda| -> cuda::Result<Vec<u8>> {
        let bytes = kept.iter().map(|&t| cuda.raw(t)).collect::<cuda::Result<Vec<_>>>()?;
        Ok(bytes.concat())
    };
    program.recorder.load_rounded(&mut cuda)?;
    cuda.launch_ops(ops.clone())?;
    let first = results(&cuda)?;
    let mut parity = Parity { runs: repeats + 2, bound: F32_BOUND, ..Parity::default() };
    parity.digest = blake3::hash(&first).to_hex()[..16].to_owned();
    parity.damaged = cuda.damaged()?.len();

    let (rounded, factor) = (rounded(tape), if case.chain { CHAIN } else { 1.0 });
    parity.norm_bound = NORM_BOUND * factor * factor;
    for &t in &program.kept {
        let (got, expected) = (cuda.read(t)?, reference.read(t));
        let error = relative_error(&got, expected);
        let bound = match (case.exact, rounded[t.index()]) {
            (true, _) => 0.0,
            (false, true) => BF16_BOUND * factor,
            (false, false) => F32_BOUND,
        };
        if share(error, bound) > share(parity.error, parity.bound) {
            (parity.error, parity.bound) = (error, bound);
        }
        if tape.info(t).dtype == Dtype::Activation {
            parity.norm = larger(parity.norm, distance(&got, expected));
        }
    }
    for &t in &program.indices {
        if cuda.read_indices(t)? != reference.read_indices(t) {
            (parity.error, parity.bound) = (f64::INFINITY, 0.0);
        }
    }

    for run in 0..=repeats {
        program.recorder.load_rounded(&mut cuda)?;
        if run == repeats {
            cuda.run_ops(ops.clone())?
        } else {
            cuda.launch_ops(ops.clone())?
        }
        parity.differing += usize::from(results(&cuda)? != first);
    }
    Ok(parity)
}

/// How much of its bound an error takes; infinite for NaN and for any error where none is allowed.
fn share(error: f64, bound: f64) -> f64 {
    if error == 0.0 {
        0.0
    } else if error.is_nan() || bound == 0.0 {
        f64::INFINITY
    } else {
        error / bound
    }
}

/// By tensor, whether it is in bf16, or computed from temporaries that are.
fn rounded(tape: &Tape) -> Vec<bool> {
    let mut rounded = vec![false; tape.tensors().len()];
    for op in tape.ops() {
        let io = op.io();
        let behind = io.reads.iter().any(|t| rounded[t.index()]);
        for t in io.writes {
            rounded[t.index()] |= behind || tape.info(t).dtype == Dtype::Activation;
        }
    }
    rounded
}

/// Largest difference over the magnitudes of the element and of the tensor together; NaN where one is NaN alone.
fn relative_error(got: &[f32], expected: &[f64]) -> f64 {
    let largest = expected.iter().filter(|x| x.is_finite()).fold(0.0_f64, |m, x| m.max(x.abs()));
    let error = |(&got, &expected): (&f32, &f64)| {
        let got = f64::from(got);
        let same = got == expected || (got.is_nan() && expected.is_nan());
        if same { 0.0 } else { (got - expected).abs() / (expected.abs() + largest).max(1e-30) }
    };
    got.iter().zip(expected).map(error).fold(0.0, larger)
}

/// `1 - 2 <x, y> / (|x|² + |y|²)`, 0 for two tensors of zeros.
fn distance(got: &[f32], expected: &[f64]) -> f64 {
    let (mut product, mut squares) = (0.0, 0.0);
    for (&x, &y) in got.iter().zip(expected).filter(|(_, y)| y.is_finite()) {
        product += f64::from(x) * y;
        squares += f64::from(x).powi(2) + y * y;
    }
    if squares == 0.0 { 0.0 } else { 1.0 - 2.0 * product / squares }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_seen_where_they_are() {
        assert_eq!(relative_error(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
        assert_eq!(relative_error(&[1.0, 2.5], &[1.0, 2.0]), 0.125);
        assert!(relative_error(&[f32::NAN, 2.0], &[1.0, 2.0]).is_nan());
        assert_eq!(relative_error(&[f32::NAN, 2.0], &[f64::NAN, 2.0]), 0.0);
        assert!(
            distance(&[1.0, 1.0], &[1.0, 1.0]).abs() < 1e-12 && distance(&[1.0, 1.1], &[1.0, 1.0]) > 1e-4
        );
    }
}
