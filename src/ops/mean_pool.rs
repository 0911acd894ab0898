//! `y[b] = mean over i in skip .. of x[b, i]`: the mean of the patch tokens, without the class token.
use crate::machine::{Mem, Real};
use crate::tape::{Adjoint, Define, Io, Op, Tape, Tensor};
use rayon::prelude::*;

/// Records the mean of rows `skip..` of each sample of `x: [B, T, D]`. Returns `[B, D]`.
#[track_caller]
pub fn mean_pool(t: &mut Tape, x: Tensor, skip: usize) -> Tensor {
    let &[batch, length, dim] = t.shape(x) else { panic!("x is [B, T, D], not {:?}", t.shape(x)) };
    assert!(skip < length, "no tokens are left to pool: {length} less {skip}");
    let y = t.temp(&[batch, dim]);
    t.push(MeanPool { x, y, skip, length, dim });
    y
}

#[derive(Clone, Copy, Debug)]
struct MeanPool {
    x: Tensor,
    y: Tensor,
    skip: usize,
    length: usize,
    dim: usize,
}

impl Op for MeanPool {
    fn io(&self) -> Io {
        Io::new([self.x], [self.y])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dy) = d.of(self.y) else { return };
        let dx = d.tape.like(self.x);
        d.tape.push(MeanPoolGrad { of: *self, dy, dx });
        d.add(self.x, dx);
    }
}

impl<F: Real> Define<F> for MeanPool {
    fn define(&self, m: &Mem<F>) {
        let (x, y) = (m.read(self.x), m.write(self.y));
        let &Self { skip, length, dim, .. } = self;
        x.par_chunks(length * dim).zip(y.par_chunks_mut(dim)).for_each(|(x, y)| {
            super::linear::column_sum(&x[skip * dim..], y);
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
