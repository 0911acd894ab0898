//! Where each tensor lives: those kept between runs side by side, then one arena in which temporaries share space
//! with others that are never alive at the same time.
use crate::machine::cpu::Span;
use crate::tape::{Dtype, Io, Role, Tape, Tensor};

/// The operations from which to which a tensor is alive, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// The first operation that touches it.
    pub from: usize,
    /// The last.
    pub to: usize,
}

impl Life {
    /// Whether two tensors are alive at the same time.
    pub fn meets(self, other: Life) -> bool {
        self.from <= other.to && other.from <= self.to
    }
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

/// When each tensor is alive; `None` for those that no operation touches. A tensor lives as long as its parts, and
/// those in `keep` to the end.
pub fn lifetimes(tape: &Tape, keep: &[Tensor]) -> Vec<Option<Life>> {
    lives(tape, keep, |io| io.reads.iter().chain(&io.writes).chain(&io.scratch).copied().collect())
}

/// [`lifetimes`] on a machine that does without what definitions work in.
pub fn lifetimes_without_scratch(tape: &Tape, keep: &[Tensor]) -> Vec<Option<Life>> {
    lives(tape, keep, |io| io.reads.iter().chain(&io.writes).copied().collect())
}

fn lives(tape: &Tape, keep: &[Tensor], touched: impl Fn(&Io) -> Vec<Tensor>) -> Vec<Option<Life>> {
    let mut lives: Vec<Option<Life>> = vec![None; tape.tensors().len()];
    let mut touch = |t: Tensor, i: usize| {
        let life = lives[whole(tape, t).index()].get_or_insert(Life { from: i, to: i });
        *life = Life { from: life.from.min(i), to: life.to.max(i) };
    };
    for (i, op) in tape.ops().iter().enumerate() {
        touched(&op.io()).into_iter().for_each(|t| touch(t, i));
    }
    keep.iter().for_each(|&t| touch(t, tape.ops().len()));
    lives
}

/// Plans `tape`: temporaries largest first, each at the lowest offset that is free for all its life.
pub fn plan(tape: &Tape, lives: &[Option<Life>], widths: Widths) -> Plan {
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

    let mut order: Vec<(Tensor, Life)> = roots()
        .filter(|&t| tape.info(t).role == Role::Temp)
        .filter_map(|t| Some((t, lives[t.index()]?)))
        .collect();
    order.sort_by_key(|&(t, _)| (std::cmp::Reverse(room(t)), t));
    let mut placed: Vec<(Span, Life)> = Vec::new(); // spans here include their padding
    let mut end = kept;
    for (t, life) in order {
        let mut taken: Vec<Span> = placed.iter().filter(|p| p.1.meets(life)).map(|p| p.0).collect();
        taken.sort_unstable_by_key(|s| s.at);
        let mut at = kept;
        for s in taken {
            if at + room(t) <= s.at {
                break;
            }
            at = at.max(s.at + s.len);
        }
        spans[t.index()] = Span { at, len: size(t) };
        placed.push((Span { at, len: room(t) }, life));
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
