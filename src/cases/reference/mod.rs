//! A recorded training step of another implementation, computed again in both precisions from the files that
//! recorded it: masking, positions, every activation, losses, gradients, three updates, fine-tuning, attention over
//! padded keys. The recording is `f64`, so our `f64` is held to it at rounding and our `f32` at the usual bound.
mod folder;
mod others;
mod pretraining;

pub use folder::Error;

use super::gradcheck::{F32_BOUND, larger};
use crate::tape::Precision;
use folder::Folder;
use std::path::Path;

/// Largest error in `f64`, relative to the largest magnitude of the tensor. Two orders of summation differ by some
/// 1e-14 after a training step; three updates of Adam, which divides by roots of small numbers, leave 1e-11.
pub const F64_BOUND: f64 = 1e-9;

/// Gradients are compared relative to the largest magnitude of their tensor, or to this share of the largest of all,
/// whichever is more: a tensor whose gradient cancels to nothing but rounding has no magnitude of its own.
const LEAST_SHARE: f64 = 1e-4;

/// One tensor of the recording, and how far ours is from it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    /// The tensor, by what it belongs to and its name there.
    pub tensor: String,
    /// Error in `f64`, relative to the largest magnitude of the tensor.
    pub f64: f64,
    /// Its bound; 0 for masks.
    pub f64_bound: f64,
    /// Error in `f32`.
    pub f32: f64,
    /// Its bound; 0 for masks.
    pub f32_bound: f64,
}

impl Row {
    /// Whether both errors are within their bounds. NaN is not.
    pub fn passed(&self) -> bool {
        self.f64 <= self.f64_bound && self.f32 <= self.f32_bound
    }
}

/// A recording, compared.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Comparison {
    /// What was compared.
    pub rows: Vec<Row>,
    /// Recorded activations that this program has no counterpart of.
    pub not_compared: Vec<String>,
}

/// Computes the recording in `folder` again and compares every tensor.
///
/// In `f32`, parameters are updated from the *recorded* gradients: Adam's first steps are nearly the sign of the
/// gradient, and one that is zero but for rounding, as that of every key's bias is, has an arbitrary sign. Losses
/// and gradients are computed from end to end in both precisions.
///
/// # Errors
/// A file or tensor that is missing, unreadable or of another shape, or a setting that our models do not have.
pub fn compare(folder: &Path) -> Result<Comparison, Error> {
    let folder = Folder::open(folder)?;
    let (double, single) = (recompute::<f64>(&folder)?, recompute::<f32>(&folder)?);
    let rows = double.list.into_iter().zip(single.list).map(|(double, single)| {
        let bound = |b: f64| if double.exact { 0.0 } else { b };
        Row {
            f64_bound: bound(F64_BOUND),
            f32_bound: bound(F32_BOUND),
            f64: double.error,
            f32: single.error,
            tensor: double.tensor,
        }
    });
    Ok(Comparison { rows: rows.collect(), not_compared: double.not_compared })
}

fn recompute<F: Precision>(folder: &Folder) -> Result<Errors, Error> {
    let mut errors = Errors::default();
    pretraining::recompute::<F>(folder, &mut errors)?;
    others::fine_tuning::<F>(folder, &mut errors)?;
    others::attention_over_padded_keys::<F>(folder, &mut errors)?;
    Ok(errors)
}

/// The errors of one precision, in the order of computation.
#[derive(Default)]
struct Errors {
    list: Vec<Measured>,
    not_compared: Vec<String>,
}

/// A parameter's gradient, ours and the recorded one.
struct Gradient<'a> {
    name: String,
    ours: Vec<f64>,
    recorded: &'a [f64],
}

struct Measured {
    tensor: String,
    error: f64,
    exact: bool,
}

impl Errors {
    /// Compares reals.
    fn reals(&mut self, tensor: impl Into<String>, got: &[f64], recorded: &[f64]) {
        self.at_least(tensor, got, recorded, 0.0);
    }
    /// Compares reals relative to their largest magnitude, or to `least` if that is more.
    fn at_least(&mut self, tensor: impl Into<String>, got: &[f64], recorded: &[f64], least: f64) {
        let largest = recorded.iter().fold(least, |m, x| m.max(x.abs()));
        let error = largest_difference(got, recorded);
        let error = if error == 0.0 { 0.0 } else { error / largest };
        self.list.push(Measured { tensor: tensor.into(), error, exact: false });
    }
    /// Compares whole numbers.
    fn exactly(&mut self, tensor: impl Into<String>, got: &[f64], recorded: &[f64]) {
        let error = largest_difference(got, recorded);
        self.list.push(Measured { tensor: tensor.into(), error, exact: true });
    }
    /// Compares the gradients of one loss.
    fn gradients(&mut self, of: &str, gradients: &[Gradient]) {
        let all = gradients.iter().flat_map(|g| g.recorded);
        let least = LEAST_SHARE * all.fold(0.0_f64, |m, g| m.max(g.abs()));
        for Gradient { name, ours, recorded } in gradients {
            self.at_least(format!("{of} {name}"), ours, recorded, least);
        }
    }
}

/// NaN if there is a NaN.
fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "shapes are checked when files are read");
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, larger)
}
