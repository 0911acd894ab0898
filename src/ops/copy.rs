//! `y = x`.
use crate::machine::cuda::{Launch, Result, Stream};
use crate::machine::{Mem, Real};
use crate::tape::{Adjoint, Define, Dtype, Io, Op, Tape, Tensor};

/// Records a copy of `x`.
pub fn copy(t: &mut Tape, x: Tensor) -> Tensor {
    let (y, real) = (t.like(x), t.info(x).dtype == Dtype::Real);
    t.push(Copy { x, y, real, len: t.len(x) });
    y
}

#[derive(Debug)]
struct Copy {
    x: Tensor,
    y: Tensor,
    real: bool,
    len: usize,
}

impl Op for Copy {
    fn io(&self) -> Io {
        Io::new([self.x], [self.y])
    }
    fn vjp(&self, d: &mut Adjoint) {
        if let Some(dy) = d.of(self.y) {
            d.add(self.x, dy);
        }
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        const THREADS: usize = 256;
        const UNROLL: usize = 4; // vectors that a thread takes
        let &Self { x, y, real, len } = self;
        let (kernel, width) = if real { ("copy_f32", 4) } else { ("copy_bf16", 8) };
        let place = |t| if real { s.f32(t) } else { s.bf16(t) };
        let grid = [len.div_ceil(THREADS * UNROLL * width), 1, 1];
        s.launch(
            Launch { kernel, grid, block: THREADS, shared: 0 },
            &[place(x).into(), place(y).into(), len.into()],
        )
    }
}

impl<F: Real> Define<F> for Copy {
    fn define(&self, m: &Mem<F>) {
        m.write(self.y).copy_from_slice(m.read(self.x));
    }
}
