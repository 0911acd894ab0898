//! Differentiation: a tape in, a longer tape out.
use crate::ops::add;
use crate::tape::{Adjoint, Op, Role, Tape, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::{ops::Range, sync::Arc};

/// For each parameter, the tensor that will hold its gradient.
pub type Gradients = BTreeMap<Tensor, Tensor>;

/// Appends the operations that carry gradients back to every parameter behind the seeds. A seed is a tensor and
/// its gradient, of the same shape: a loss with 1 (or a share of it, when gradients are accumulated), or any other
/// output with the vector to be multiplied by its Jacobian.
pub fn backward(t: &mut Tape, seeds: &[(Tensor, Tensor)]) -> Gradients {
    differentiate(t, seeds, &[])
}

/// The same gradients to the bit, in less memory and more time: of a [segment](Tape::segment) only what operations
/// outside of it read is kept. What its own gradients need besides is computed again, by the same operations into the
/// same tensors, right before them; until then, the memory of these tensors is free for others.
pub fn backward_recomputing(t: &mut Tape, seeds: &[(Tensor, Tensor)]) -> Gradients {
    let segments = t.segments().to_vec();
    differentiate(t, seeds, &segments)
}

/// Differentiates; what `segments` compute is computed again.
fn differentiate(t: &mut Tape, seeds: &[(Tensor, Tensor)], segments: &[Range<usize>]) -> Gradients {
    for &(y, dy) in seeds {
        assert_eq!(t.shape(y), t.shape(dy), "{y:?} and its gradient differ in shape");
    }
    let mut wanted: Vec<bool> = t.tensors().iter().map(|t| t.role == Role::Param).collect();
    for io in t.ops().iter().map(|op| op.io()) {
        let any = io.reads.iter().any(|t| wanted[t.index()]);
        io.writes.iter().for_each(|t| wanted[t.index()] |= any);
    }
    let mut to = t.ops().len();
    let params: Vec<Tensor> = t.with_role(Role::Param).collect();
    let mut d = Adjoint::new(t, seeds, wanted);
    for segment in segments.iter().rev() {
        adjoints(&mut d, segment.end..to);
        let from = d.tape.ops().len();
        adjoints(&mut d, segment.clone());
        let again = needed_again(d.tape, segment, from);
        d.tape.run_again(from, again);
        to = segment.start;
    }
    adjoints(&mut d, 0..to);
    params.into_iter().filter_map(|p| leave_one_term(&mut d, p).map(|g| (p, g))).collect()
}

/// Records what carries gradients back through some of the operations.
fn adjoints(d: &mut Adjoint, ops: Range<usize>) {
    for i in ops.rev() {
        let op = Arc::clone(&d.tape.ops()[i]);
        for y in op.io().writes {
            leave_one_term(d, y);
        }
        op.vjp(d);
    }
}

/// The operations of `segment` without which its gradients, the operations from `from` on, would miss something that
/// they read, directly or through one another. What others have read before `from` has been kept for them.
fn needed_again(t: &Tape, segment: &Range<usize>, from: usize) -> Vec<Arc<dyn Op>> {
    let read = |ops: &[Arc<dyn Op>]| ops.iter().flat_map(|op| op.io().reads).collect::<BTreeSet<Tensor>>();
    let (kept, mut needed) = (read(&t.ops()[segment.end..from]), read(&t.ops()[from..]));
    let mut again = Vec::new();
    for op in t.ops()[segment.clone()].iter().rev() {
        let io = op.io();
        if io.writes.iter().any(|y| needed.contains(y) && !kept.contains(y)) {
            let in_place = io.writes.iter().any(|y| io.reads.contains(y));
            assert!(!in_place, "{} updates in place: it cannot run again", op.name());
            needed.extend(io.reads);
            again.push(Arc::clone(op));
        }
    }
    again.reverse();
    again
}

/// Adds up the terms of the gradient of `t`.
fn leave_one_term(d: &mut Adjoint, t: Tensor) -> Option<Tensor> {
    let sum = d.drain(t).into_iter().reduce(|a, b| add(d.tape, a, b))?;
    d.add(t, sum);
    Some(sum)
}
