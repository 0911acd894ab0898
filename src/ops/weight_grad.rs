//! The gradients of a linear layer's weights and biases, for whatever gives its rows.
use super::tiling::{self, Half, Kernels, Leaving, Lies, Product, Tiling, in_vectors};
use super::{ROWS, column_sum};
use crate::machine::cuda::{Arg, Card, Launch, Ptr, Result, Stream};
use crate::machine::{Into as Dst, Mat, MatMut, Mem, Real, Threads, gemm};
use crate::tape::{Adjoint, Tape, Tensor};
use rayon::prelude::*;

pub(super) const KERNELS: Kernels = Kernels::new(
    ["linear_weight_grad", "linear_weight_grad_small"],
    "linear_weight_grad_wide",
    Half::Narrow("linear_weight_grad_narrow"),
    Leaving { instructions: 335, tensors: 0, stores: 64 },
);

/// The gradients of weights `w`, of `n k` elements, and biases `b: [n]` from `dy: [rows, n]` and rows `x:
/// [rows, k]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct WeightGrad {
    dw: Tensor,
    db: Tensor,
    partial: Tensor, // sums of dy's columns, by blocks of rows
    rows: usize,
    n: usize,
    k: usize,
}

impl WeightGrad {
    /// Makes room for them.
    pub(super) fn of(t: &mut Tape, dy: Tensor, w: Tensor, b: Tensor) -> Self {
        let n = t.len(b);
        let (rows, k) = (t.len(dy) / n, t.len(w) / n);
        let (dw, db, partial) = (t.like(w), t.like(b), t.temp(&[rows.div_ceil(ROWS), n]));
        WeightGrad { dw, db, partial, rows, n, k }
    }
    /// Says that they are the gradients of `w` and `b`.
    pub(super) fn leave(&self, d: &mut Adjoint, w: Tensor, b: Tensor) {
        d.add(w, self.dw);
        d.add(b, self.db);
    }
    pub(super) fn writes(&self) -> [Tensor; 2] {
        [self.dw, self.db]
    }
    /// What the definition works in.
    pub(super) fn scratch(&self) -> Tensor {
        self.partial
    }
    pub(super) fn flops(&self) -> u64 {
        2 * (self.rows * self.n * self.k) as u64
    }
    /// `dw = dyᵀ x`, `db[j] = sum over i of dy[i, j]` by blocks of rows added in order.
    pub(super) fn define<F: Real>(&self, m: &Mem<F>, dy: &[F], x: &[F]) {
        let &WeightGrad { rows, n, k, .. } = self;
        let (dw, db, partial) = (m.write(self.dw), m.write(self.db), m.write(self.partial));
        let (a, b) = (Mat::rows(dy, [rows, n]).t(), Mat::rows(x, [rows, k]));
        gemm(MatMut::rows(dw, [n, k]), a, b, F::ONE, Dst::Replace, Threads::All);
        dy.par_chunks(ROWS * n).zip(partial.par_chunks_mut(n)).for_each(|(dy, sum)| column_sum(dy, sum));
        column_sum(partial, db);
    }
    /// How kernels split it.
    pub(super) fn split(&self, card: Card) -> Split {
        let &WeightGrad { rows, n, k, .. } = self;
        let product = Product { shape: [n, k], sum: rows, in_vectors: in_vectors(n, k) };
        Split { grad: *self, tiling: Tiling::of_split(card, KERNELS, product) }
    }
}

/// A weight gradient whose rows are split: each split leaves its part of both sums, and the parts are added
/// in their order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split {
    grad: WeightGrad,
    tiling: Tiling,
}

impl Split {
    /// Numbers in a part, whole vectors of 4; a single one needs no room.
    fn stride(&self) -> usize {
        if self.tiling.splits() == 1 { 0 } else { (self.grad.n * (self.grad.k + 1)).next_multiple_of(4) }
    }
    /// Cycles that its kernel takes, by the model of tilings.
    pub(super) fn cycles(&self) -> usize {
        self.tiling.cycles()
    }
    /// Bytes of all parts.
    pub(super) fn bytes(&self) -> usize {
        self.tiling.splits() * self.stride() * size_of::<f32>()
    }
    /// Launches the kernels on what lies at `dy` and `x`, with room for the parts at `parts`.
    pub(super) fn launch(&self, s: &Stream, parts: Ptr, dy: Ptr, x: Ptr) -> Result<()> {
        const BLOCK: usize = 256; // threads, each with 4 numbers
        let WeightGrad { rows, n, k, .. } = self.grad;
        let dy = tiling::Matrix { at: dy, shape: [rows, n], lies: Lies::Across };
        let x = tiling::Matrix { at: x, shape: [rows, k], lies: Lies::Across };
        let operands = [self.tiling.left(s, dy)?, self.tiling.right(s, x)?];
        let count = self.tiling.splits();
        let left = [s.f32(self.grad.dw), s.f32(self.grad.db)];
        let to = if count == 1 { left } else { [parts, parts.offset(n * k * size_of::<f32>())] };
        let extents = [rows, n, k, self.tiling.each(), self.stride()];
        let args = [&operands[..], &to.map(Arg::from), &extents.map(Arg::from)].concat();
        self.tiling.launch(s, &args)?;
        if count == 1 {
            return Ok(());
        }
        let grid = [(n * (k + 1)).div_ceil(4 * BLOCK), 1, 1];
        s.launch(
            Launch { kernel: "split_sum", grid, block: BLOCK, shared: 0 },
            &[
                parts.into(),
                left[0].into(),
                left[1].into(),
                count.into(),
                (n * k).into(),
                n.into(),
                self.stride().into(),
            ],
        )
    }
}
