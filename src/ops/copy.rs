//! `y = x`.
use crate::machine::{Mem, Real};
use crate::tape::{Adjoint, Define, Io, Op, Tape, Tensor};

/// Records a copy of `x`.
pub fn copy(t: &mut Tape, x: Tensor) -> Tensor {
    let y = t.like(x);
    t.push(Copy { x, y });
    y
}

#[derive(Debug)]
struct Copy {
    x: Tensor,
    y: Tensor,
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
}

impl<F: Real> Define<F> for Copy {
    fn define(&self, m: &Mem<F>) {
        m.write(self.y).copy_from_slice(m.read(self.x));
    }
}
