//! What a run computes, operation by operation: where numbers grow, where the first NaN comes from, what takes time.
use super::Machine;
use crate::machine::{Real, cuda};
use crate::tape::{Dtype, Tensor};
use serde::Serialize;

/// What one operation has written.
#[derive(Clone, Debug, Serialize)]
pub struct Traced {
    /// Its place in the program.
    pub number: usize,
    /// The operation.
    pub op: &'static str,
    /// The tensor's name, where it has one.
    pub tensor: Option<String>,
    /// The tensor's shape.
    pub shape: Vec<usize>,
    /// The mean of its numbers; of positions, where it holds those.
    pub mean: f64,
    /// How many of them are NaN.
    pub nan: usize,
    /// Microseconds that the operation took.
    pub us: f64,
}

/// Runs every operation by itself and looks at each tensor it writes.
///
/// # Errors
/// What a device says.
pub fn trace<F: Real>(machine: &mut dyn Machine<Real = F>) -> cuda::Result<Vec<Traced>> {
    let mut traced = Vec::new();
    for number in 0..machine.tape().ops().len() {
        let us = machine.time_ops(number..number + 1)?.as_secs_f64() * 1e6;
        let op = machine.tape().ops()[number].clone();
        for t in op.io().writes {
            let values = values(machine, t)?;
            let info = machine.tape().info(t);
            traced.push(Traced {
                number,
                op: op.name(),
                tensor: info.name.clone(),
                shape: info.shape.clone(),
                mean: values.iter().sum::<f64>() / values.len().max(1) as f64,
                nan: values.iter().filter(|v| v.is_nan()).count(),
                us,
            });
        }
    }
    Ok(traced)
}

fn values<F: Real>(machine: &dyn Machine<Real = F>, t: Tensor) -> cuda::Result<Vec<f64>> {
    Ok(match machine.tape().info(t).dtype {
        Dtype::Index => machine.read_indices(t)?.into_iter().map(f64::from).collect(),
        _ => machine.read(t)?.into_iter().map(Real::f64).collect(),
    })
}
