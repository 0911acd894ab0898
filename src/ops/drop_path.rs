//! `y[b, ..] = scale[b] x[b, ..]`: stochastic depth, with the factors (0, or 1 over the keep probability) as data.
use crate::machine::{Mem, Real};
use crate::tape::{Adjoint, Define, Io, Op, Tape, Tensor};
use rayon::prelude::*;

/// Records the scaling of each sample of `x` (`[batch, ..]`) by its factor in `scale` (`[batch]`).
#[track_caller]
pub fn drop_path(t: &mut Tape, x: Tensor, scale: Tensor) -> Tensor {
    t.expect_shape("scale", scale, &t.shape(x)[..1]);
    let y = t.like(x);
    t.push(DropPath { x, scale, y });
    y
}

#[derive(Debug)]
struct DropPath {
    x: Tensor,
    scale: Tensor,
    y: Tensor,
}

impl Op for DropPath {
    fn io(&self) -> Io {
        Io::new([self.x, self.scale], [self.y])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dy) = d.of(self.y) else { return };
        let dx = drop_path(d.tape, dy, self.scale);
        d.add(self.x, dx);
    }
}

impl<F: Real> Define<F> for DropPath {
    fn define(&self, m: &Mem<F>) {
        let (x, scale, y) = (m.read(self.x), m.read(self.scale), m.write(self.y));
        let per_sample = x.len() / scale.len();
        (x.par_chunks(per_sample), y.par_chunks_mut(per_sample), scale).into_par_iter().for_each(
            |(x, y, s)| {
                y.iter_mut().zip(x).for_each(|(y, x)| *y = *x * *s);
            },
        );
    }
}
