//! `y = a + b`.
use crate::machine::{Mem, Real};
use crate::tape::{Adjoint, Define, Io, Op, Tape, Tensor};
use rayon::prelude::*;

/// Records the sum of two tensors of one shape.
#[track_caller]
pub fn add(t: &mut Tape, a: Tensor, b: Tensor) -> Tensor {
    t.expect_shape("b", b, t.shape(a));
    let y = t.like(a);
    t.push(Add { a, b, y });
    y
}

#[derive(Debug)]
struct Add {
    a: Tensor,
    b: Tensor,
    y: Tensor,
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
