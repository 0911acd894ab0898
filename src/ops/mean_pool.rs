//! `y[b] = mean over i in skip .. of x[b, i]`: the mean of the patch tokens, without the class token.
use super::{WARP_COLS, assert_vectors};
use crate::machine::cuda::{Launch, Result, Stream};
use crate::machine::{Mem, Real};
use crate::tape::{Adjoint, Define, Io, Op, Tape, Tensor};
use rayon::prelude::*;

/// Records the mean of rows `skip..` of each sample of `x: [B, T, D]`. Returns `[B, D]`.
#[track_caller]
pub fn mean_pool(t: &mut Tape, x: Tensor, skip: usize) -> Tensor {
    let &[batch, length, dim] = t.shape(x) else { panic!("x is [B, T, D], not {:?}", t.shape(x)) };
    assert!(skip < length, "no tokens are left to pool: {length} less {skip}");
    let y = t.activation(&[batch, dim]);
    t.push(MeanPool { x, y, skip, batch, length, dim });
    y
}

#[derive(Clone, Copy, Debug)]
struct MeanPool {
    x: Tensor,
    y: Tensor,
    skip: usize,
    batch: usize,
    length: usize,
    dim: usize,
}

impl Op for MeanPool {
    fn io(&self) -> Io {
        Io::new([self.x], [self.y])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dy) = d.of(self.y) else { return };
        let dx = d.tape.activation_like(self.x);
        d.tape.push(MeanPoolGrad { of: *self, dy, dx });
        d.add(self.x, dx);
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { x, y, skip, batch, length, dim } = self;
        assert_vectors("mean_pool", dim);
        s.launch(
            Launch { kernel: "mean_pool", grid: [dim.div_ceil(WARP_COLS), batch, 1], block: 512, shared: 0 },
            &[s.bf16(x).into(), s.bf16(y).into(), length.into(), skip.into(), dim.into()],
        )
    }
}

impl<F: Real> Define<F> for MeanPool {
    fn define(&self, m: &Mem<F>) {
        let (x, y) = (m.read(self.x), m.write(self.y));
        let &Self { skip, length, dim, .. } = self;
        x.par_chunks(length * dim).zip(y.par_chunks_mut(dim)).for_each(|(x, y)| {
            super::column_sum(&x[skip * dim..], y);
            let scale = F::of(1.0 / (length - skip) as f64);
            y.iter_mut().for_each(|y| *y *= scale);
        });
    }
}

/// `dx[b, i] = dy[b] / count`, zero for the rows that were skipped.
#[derive(Debug)]
struct MeanPoolGrad {
    of: MeanPool,
    dy: Tensor,
    dx: Tensor,
}

impl Op for MeanPoolGrad {
    fn io(&self) -> Io {
        Io::new([self.dy], [self.dx])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        const WARPS: usize = 8;
        const ROWS: usize = 8; // that a warp writes
        let MeanPool { skip, batch, length, dim, .. } = self.of;
        assert_vectors("mean_pool", dim);
        let grid = [length.div_ceil(WARPS * ROWS), dim.div_ceil(WARP_COLS), batch];
        s.launch(
            Launch { kernel: "mean_pool_grad", grid, block: 32 * WARPS, shared: 0 },
            &[s.bf16(self.dy).into(), s.bf16(self.dx).into(), length.into(), skip.into(), dim.into()],
        )
    }
}

impl<F: Real> Define<F> for MeanPoolGrad {
    fn define(&self, m: &Mem<F>) {
        let (dy, dx) = (m.read(self.dy), m.write(self.dx));
        let MeanPool { skip, length, dim, .. } = self.of;
        let scale = F::of(1.0 / (length - skip) as f64);
        dx.par_chunks_mut(length * dim).zip(dy.par_chunks(dim)).for_each(|(dx, dy)| {
            let (before, tokens) = dx.split_at_mut(skip * dim);
            before.fill(F::ZERO);
            for dx in tokens.chunks_exact_mut(dim) {
                dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = *dy * scale);
            }
        });
    }
}
