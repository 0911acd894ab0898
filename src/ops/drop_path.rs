//! `y[b, ..] = scale[b] x[b, ..]`: stochastic depth, with the factors (0, or 1 over the keep probability) as data.
use super::assert_vectors;
use crate::machine::cuda::{Launch, Result, Stream};
use crate::machine::{Mem, Real};
use crate::tape::{Adjoint, Define, Io, Op, Tape, Tensor};
use rayon::prelude::*;

/// Records the scaling of each sample of `x` (`[batch, ..]`) by its factor in `scale` (`[batch]`).
#[track_caller]
pub fn drop_path(t: &mut Tape, x: Tensor, scale: Tensor) -> Tensor {
    t.expect_shape("scale", scale, &t.shape(x)[..1]);
    let (batch, per_sample) = (t.len(scale), t.len(x) / t.len(scale));
    let y = t.activation_like(x);
    t.push(DropPath { x, scale, y, batch, per_sample });
    y
}

#[derive(Debug)]
struct DropPath {
    x: Tensor,
    scale: Tensor,
    y: Tensor,
    batch: usize,
    per_sample: usize,
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
    fn launch(&self, s: &Stream) -> Result<()> {
        const THREADS: usize = 256;
        const UNROLL: usize = 4; // vectors that a thread takes
        let &Self { x, scale, y, batch, per_sample } = self;
        assert_vectors("drop_path", per_sample);
        let grid = [per_sample.div_ceil(THREADS * UNROLL * 8), batch, 1];
        s.launch(
            Launch { kernel: "drop_path", grid, block: THREADS, shared: 0 },
            &[s.bf16(x).into(), s.f32(scale).into(), s.bf16(y).into(), per_sample.into()],
        )
    }
}

impl<F: Real> Define<F> for DropPath {
    fn define(&self, m: &Mem<F>) {
        let (x, scale, y) = (m.read(self.x), m.read(self.scale), m.write(self.y));
        (x.par_chunks(self.per_sample), y.par_chunks_mut(self.per_sample), scale).into_par_iter().for_each(
            |(x, y, s)| {
                y.iter_mut().zip(x).for_each(|(y, x)| *y = *x * *s);
            },
        );
    }
}
