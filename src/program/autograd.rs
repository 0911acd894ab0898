//! Differentiation: a tape in, a longer tape out.
use crate::ops::add;
use crate::tape::{Adjoint, Role, Tape, Tensor};
use std::{collections::BTreeMap, sync::Arc};

/// For each parameter, the tensor that will hold its gradient.
pub type Gradients = BTreeMap<Tensor, Tensor>;

/// Appends the operations that carry gradients back to every parameter behind the seeds. A seed is a tensor and
/// its gradient, of the same shape: a loss with 1 (or a share of it, when gradients are accumulated), or any other
/// output with the vector to be multiplied by its Jacobian.
pub fn backward(t: &mut Tape, seeds: &[(Tensor, Tensor)]) -> Gradients {
    for &(y, dy) in seeds {
        assert_eq!(t.shape(y), t.shape(dy), "{y:?} and its gradient differ in shape");
    }
    let mut wanted: Vec<bool> = t.tensors().iter().map(|t| t.role == Role::Param).collect();
    for io in t.ops().iter().map(|op| op.io()) {
        let any = io.reads.iter().any(|t| wanted[t.index()]);
        io.writes.iter().for_each(|t| wanted[t.index()] |= any);
    }
    let recorded = t.ops().len();
    let params: Vec<Tensor> = t.with_role(Role::Param).collect();
    let mut d = Adjoint::new(t, seeds, wanted);
    for i in (0..recorded).rev() {
        let op = Arc::clone(&d.tape.ops()[i]);
        for y in op.io().writes {
            leave_one_term(&mut d, y);
        }
        op.vjp(&mut d);
    }
    params.into_iter().filter_map(|p| leave_one_term(&mut d, p).map(|g| (p, g))).collect()
}

/// Adds up the terms of the gradient of `t`.
fn leave_one_term(d: &mut Adjoint, t: Tensor) -> Option<Tensor> {
    let sum = d.drain(t).into_iter().reduce(|a, b| add(d.tape, a, b))?;
    d.add(t, sum);
    Some(sum)
}
