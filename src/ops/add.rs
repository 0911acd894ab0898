//! `y = a + b`.
use crate::machine::cuda::{Launch, Result, Stream};
use crate::machine::{Mem, Real};
use crate::tape::{Adjoint, Define, Dtype, Io, Op, Tape, Tensor};
use rayon::prelude::*;

/// Records the sum of two tensors of one shape: an activation, unless both are [`Dtype::Real`].
#[track_caller]
pub fn add(t: &mut Tape, a: Tensor, b: Tensor) -> Tensor {
    t.expect_shape("b", b, t.shape(a));
    let real = [a, b].into_iter().all(|x| t.info(x).dtype == Dtype::Real);
    let y = if real { t.like(a) } else { t.activation_like(a) };
    t.push(Add { a, b, y, real, len: t.len(a) });
    y
}

#[derive(Debug)]
struct Add {
    a: Tensor,
    b: Tensor,
    y: Tensor,
    real: bool,
    len: usize,
}

impl Op for Add {
    fn io(&self) -> Io {
        Io::new([self.a, self.b], [self.y])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dy) = d.of(self.y) else { return };
        d.add(self.a, dy);
        d.add(self.b, dy);
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        const THREADS: usize = 256;
        const UNROLL: usize = 2; // vectors that a thread takes
        let &Self { a, b, y, real, len } = self;
        let (kernel, width) = if real { ("add_f32", 4) } else { ("add_bf16", 8) };
        let place = |t| if real { s.f32(t) } else { s.bf16(t) };
        let grid = [len.div_ceil(THREADS * UNROLL * width), 1, 1];
        s.launch(
            Launch { kernel, grid, block: THREADS, shared: 0 },
            &[place(a).into(), place(b).into(), place(y).into(), len.into()],
        )
    }
}

impl<F: Real> Define<F> for Add {
    fn define(&self, m: &Mem<F>) {
        let (a, b, y) = (m.read(self.a), m.read(self.b), m.write(self.y));
        const BLOCK: usize = 1 << 14;
        (a.par_chunks(BLOCK), b.par_chunks(BLOCK), y.par_chunks_mut(BLOCK))
            .into_par_iter()
            .for_each(|(a, b, y)| y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = *a + *b));
    }
}
