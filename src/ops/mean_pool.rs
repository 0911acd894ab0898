//! `y[b] = mean over i in skip .. lengths[b] of x[b, i]`: the mean of the patch tokens, without the class token.
use super::{WARP_COLS, assert_vectors};
use crate::machine::cuda::{Launch, Result, Stream};
use crate::machine::{Mem, Real};
use crate::tape::{Adjoint, Define, Io, Op, Tape, Tensor};
use rayon::prelude::*;

/// Records the mean of rows `skip..lengths[b]` of each sample of `x: [B, T, D]`; `lengths: [B]` are indices, or left out
/// for all rows. The mean of no rows is zero. Returns `[B, D]`.
#[track_caller]
pub fn mean_pool(t: &mut Tape, x: Tensor, skip: usize, lengths: Option<Tensor>) -> Tensor {
    let &[batch, length, dim] = t.shape(x) else { panic!("x is [B, T, D], not {:?}", t.shape(x)) };
    assert!(skip < length, "no tokens are left to pool: {length} less {skip}");
    let y = t.activation(&[batch, dim]);
    if let Some(lengths) = lengths {
        t.expect_shape("lengths", lengths, &[batch]);
    }
    t.push(MeanPool { x, lengths, y, skip, batch, length, dim });
    y
}

#[derive(Clone, Copy, Debug)]
struct MeanPool {
    x: Tensor,
    lengths: Option<Tensor>,
    y: Tensor,
    skip: usize,
    batch: usize,
    length: usize,
    dim: usize,
}

impl MeanPool {
    /// The row after the last that counts of sample `b`, and one by their number.
    fn end<F: Real>(&self, lengths: Option<&[u32]>, b: usize) -> (usize, F) {
        let end = lengths.map_or(self.length, |l| l[b] as usize);
        (end, F::of(1.0 / end.saturating_sub(self.skip).max(1) as f64))
    }
}

impl Op for MeanPool {
    fn io(&self) -> Io {
        Io::new([Some(self.x), self.lengths], [self.y])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dy) = d.of(self.y) else { return };
        let dx = d.tape.activation_like(self.x);
        d.tape.push(MeanPoolGrad { of: *self, dy, dx });
        d.add(self.x, dx);
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        const COLS: usize = 128; // of a block
        let &Self { x, lengths, y, skip, batch, length, dim } = self;
        assert_vectors("mean_pool", dim);
        s.launch(
            Launch { kernel: "mean_pool", grid: [dim.div_ceil(COLS), batch, 1], block: 512, shared: 0 },
            &[
                s.bf16(x).into(),
                lengths.map(|t| s.indices(t)).into(),
                s.bf16(y).into(),
                length.into(),
                skip.into(),
                dim.into(),
            ],
        )
    }
}

impl<F: Real> Define<F> for MeanPool {
    fn define(&self, m: &Mem<F>) {
        let (x, y) = (m.read(self.x), m.write(self.y));
        let lengths = self.lengths.map(|t| m.read_indices(t));
        let &Self { skip, length, dim, .. } = self;
        x.par_chunks(length * dim).zip(y.par_chunks_mut(dim)).enumerate().for_each(|(b, (x, y))| {
            let (end, scale) = self.end(lengths, b);
            super::column_sum(&x[skip * dim..end.max(skip) * dim], y);
            y.iter_mut().for_each(|y| *y *= scale);
        });
    }
}

/// `dx[b, i] = dy[b] / count`, zero for the rows that do not count.
#[derive(Debug)]
struct MeanPoolGrad {
    of: MeanPool,
    dy: Tensor,
    dx: Tensor,
}

impl Op for MeanPoolGrad {
    fn io(&self) -> Io {
        Io::new([Some(self.dy), self.of.lengths], [self.dx])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        const WARPS: usize = 8;
        const ROWS: usize = 8; // that a warp writes
        let MeanPool { lengths, skip, batch, length, dim, .. } = self.of;
        assert_vectors("mean_pool", dim);
        let grid = [length.div_ceil(WARPS * ROWS), dim.div_ceil(WARP_COLS), batch];
        s.launch(
            Launch { kernel: "mean_pool_grad", grid, block: 32 * WARPS, shared: 0 },
            &[
                s.bf16(self.dy).into(),
                lengths.map(|t| s.indices(t)).into(),
                s.bf16(self.dx).into(),
                length.into(),
                skip.into(),
                dim.into(),
            ],
        )
    }
}

impl<F: Real> Define<F> for MeanPoolGrad {
    fn define(&self, m: &Mem<F>) {
        let (dy, dx) = (m.read(self.dy), m.write(self.dx));
        let MeanPool { lengths, skip, length, dim, .. } = self.of;
        let lengths = lengths.map(|t| m.read_indices(t));
        dx.par_chunks_mut(length * dim).zip(dy.par_chunks(dim)).enumerate().for_each(|(b, (dx, dy))| {
            let (end, scale) = self.of.end::<F>(lengths, b);
            for (i, dx) in dx.chunks_exact_mut(dim).enumerate() {
                if (skip..end).contains(&i) {
                    dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = *dy * scale);
                } else {
                    dx.fill(F::ZERO);
                }
            }
        });
    }
}
