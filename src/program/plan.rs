//! Where each tensor lives: those kept between runs side by side, then one arena in which temporaries share space
//! with others that are never alive at the same time.
use crate::machine::cpu::Span;
use crate::tape::{Dtype, Io, Role, Tape, Tensor};

/// The operations from which to which a tensor holds what is still to be read, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// The operation that writes it, or else the first that touches it.
    pub from: usize,
    /// The last that touches it.
    pub to: usize,
}

/// Whether two tensors with these lives are ever alive at the same time.
pub fn meet(a: &[Life], b: &[Life]) -> bool {
    a.iter().any(|a| b.iter().any(|b| a.from <= b.to && b.from <= a.to))
}

/// A memory plan for one tape.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where each tensor lies, by [`Tensor::index`].
    pub spans: Vec<Span>,
    /// Bytes of all.
    pub bytes: usize,
    /// Bytes of those kept between runs; the arena begins after them.
    pub kept: usize,
}

/// The tensor that `t` is a part of, or `t` itself.
fn whole(tape: &Tape, t: Tensor) -> Tensor {
    tape.info(t).part.map_or(t, |(w, _)| whole(tape, w))
}

/// How much room elements take on a machine.
#[derive(Clone, Copy, Debug)]
pub struct Widths {
    /// Bytes of a [`Dtype::Real`].
    pub real: usize,
    /// Bytes of a [`Dtype::Activation`].
    pub activation: usize,
    /// What tensors are aligned to, in bytes.
    pub align: usize,
}

impl Widths {
    /// Of a host that computes in `F`.
    pub fn host<F>() -> Self {
        Widths { real: size_of::<F>(), activation: size_of::<F>(), align: crate::machine::cpu::ALIGN }
    }
    /// Bytes of an element.
    pub fn of(&self, dtype: Dtype) -> usize {
        match dtype {
            Dtype::Real => self.real,
            Dtype::Activation => self.activation,
            Dtype::Index => size_of::<u32>(),
            Dtype::Stored => size_of::<half::f16>(),
        }
    }
}

/// The lives of each tensor, in order; none of those that no operation touches. An operation that writes a tensor anew,
/// without reading it, begins another life of it. Those with parts have one life, which is as long as theirs, and so have
/// those in `keep`, to the end.
pub fn lifetimes(tape: &Tape, keep: &[Tensor]) -> Vec<Vec<Life>> {
    lives(tape, keep, |io| io.reads.iter().chain(&io.writes).chain(&io.scratch).copied().collect())
}

/// [`lifetimes`] on a machine that does without what definitions work in.
pub fn lifetimes_without_scratch(tape: &Tape, keep: &[Tensor]) -> Vec<Vec<Life>> {
    lives(tape, keep, |io| io.reads.iter().chain(&io.writes).copied().collect())
}

fn lives(tape: &Tape, keep: &[Tensor], touched: impl Fn(&Io) -> Vec<Tensor>) -> Vec<Vec<Life>> {
    let all = || (0..tape.tensors().len()).map(Tensor::at);
    let mut one_life = vec![false; tape.tensors().len()];
    for t in all().filter(|&t| tape.info(t).part.is_some()).chain(keep.iter().copied()) {
        one_life[whole(tape, t).index()] = true;
    }
    let mut lives: Vec<Vec<Life>> = vec![Vec::new(); tape.tensors().len()];
    let mut touch = |t: Tensor, i: usize, anew: bool| {
        let t = whole(tape, t).index();
        match lives[t].last_mut() {
            Some(life) if one_life[t] || !anew => life.to = i,
            _ => lives[t].push(Life { from: i, to: i }),
        }
    };
    for (i, op) in tape.ops().iter().enumerate() {
        let io = op.io();
        touched(&io).into_iter().for_each(|t| touch(t, i, !io.reads.contains(&t)));
    }
    keep.iter().for_each(|&t| touch(t, tape.ops().len(), false));
    lives
}

/// Plans `tape`: temporaries largest first, each at the lowest offset that is free for all its lives.
pub fn plan(tape: &Tape, lives: &[Vec<Life>], widths: Widths) -> Plan {
    let width = |t: Tensor| widths.of(tape.info(t).dtype);
    let size = |t: Tensor| tape.len(t) * width(t);
    let room = |t: Tensor| size(t).next_multiple_of(widths.align);
    let mut spans = vec![Span { at: 0, len: 0 }; tape.tensors().len()];
    let roots = || (0..tape.tensors().len()).map(Tensor::at).filter(|&t| tape.info(t).part.is_none());

    let mut kept = 0;
    for t in roots().filter(|&t| tape.info(t).role != Role::Temp) {
        spans[t.index()] = Span { at: kept, len: size(t) };
        kept += room(t);
    }

    let mut order: Vec<Tensor> =
        roots().filter(|&t| tape.info(t).role == Role::Temp && !lives[t.index()].is_empty()).collect();
    order.sort_by_key(|&t| (std::cmp::Reverse(room(t)), t));
    let mut placed: Vec<(Span, &[Life])> = Vec::new(); // spans here include their padding
    let mut end = kept;
    for t in order {
        let lives = &lives[t.index()][..];
        let mut taken: Vec<Span> = placed.iter().filter(|p| meet(p.1, lives)).map(|p| p.0).collect();
        taken.sort_unstable_by_key(|s| s.at);
        let mut at = kept;
        for s in taken {
            if at + room(t) <= s.at {
                break;
            }
            at = at.max(s.at + s.len);
        }
        spans[t.index()] = Span { at, len: size(t) };
        placed.push((Span { at, len: room(t) }, lives));
        end = end.max(at + room(t));
    }

    for t in (0..spans.len()).map(Tensor::at) {
        let (mut w, mut from) = (t, 0);
        while let Some((outer, at)) = tape.info(w).part {
            (w, from) = (outer, from + at);
        }
        if w != t {
            spans[t.index()] = Span { at: spans[w.index()].at + from * width(w), len: size(t) };
        }
    }
    Plan { spans, bytes: end, kept }
}
