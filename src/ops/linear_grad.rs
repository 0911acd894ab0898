//! The gradients of linear layers ([`linear`](super::linear)): of what they read, of GELU, of weights and biases.
use super::linear::affine_tiling;
use super::tiling::{self, Half, Kernels, Leaving, Lies, Tiling};
use super::weight_grad::WeightGrad;
use super::{ROWS, row_block};
use crate::machine::cuda::{Arg, Card, Launch, Result, Stream};
use crate::machine::{Into as Dst, Mat, MatMut, Mem, Real, Threads, gemm};
use crate::tape::{Adjoint, Define, Io, Op, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;
use std::f64::consts::{FRAC_1_SQRT_2, PI};

const LINEAR_INPUT_GRAD: Kernels = Kernels::new(
    ["linear_input_grad", "linear_input_grad_small"],
    "linear_input_grad_wide",
    Half::PingPong("linear_input_grad_pingpong"),
    Leaving { instructions: 140, tensors: 1, stores: 0 },
);
const LINEAR_INPUT_GRAD_GELU: Kernels = Kernels::new(
    ["linear_input_grad_gelu", "linear_input_grad_gelu_small"],
    "linear_input_grad_gelu_wide",
    Half::PingPong("linear_input_grad_gelu_pingpong"),
    Leaving { instructions: 2470, tensors: 2, stores: 0 },
);

pub(super) const KERNELS: [Kernels; 2] = [LINEAR_INPUT_GRAD, LINEAR_INPUT_GRAD_GELU];

/// `dy *= gelu'(h)`, where `gelu'(h) = Φ(h) + h φ(h)`.
#[multiversion(targets = "simd")]
fn times_gelu_slope<F: Real>(dy: &mut [F], h: &[F]) {
    let density = F::of(1.0 / (2.0 * PI).sqrt());
    for (dy, &h) in dy.iter_mut().zip(h) {
        let s = h * F::of(FRAC_1_SQRT_2);
        let cumulative = F::of(0.5) * (F::ONE + s.erf());
        // The same exponential as in `erf`, written the same way, so that it is computed once.
        *dy *= cumulative + h * density * (-(s * s)).exp();
    }
}

/// `dh = dy gelu'(h) + direct`, for readers of a GELU's value that do not fold its slope in themselves; `direct`
/// is what those that do have left.
#[derive(Debug)]
pub(super) struct GeluGrad {
    pub(super) h: Tensor,
    pub(super) dy: Tensor,
    pub(super) direct: Option<Tensor>,
    pub(super) dh: Tensor,
    pub(super) len: usize,
}

impl Op for GeluGrad {
    fn io(&self) -> Io {
        Io::new([Some(self.h), Some(self.dy), self.direct], [self.dh])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        const BLOCK: usize = 256; // threads, each with a vector of 8
        let &GeluGrad { h, dy, direct, dh, len } = self;
        s.launch(
            Launch { kernel: "gelu_grad", grid: [len.div_ceil(8 * BLOCK), 1, 1], block: BLOCK, shared: 0 },
            &[
                s.bf16(h).into(),
                s.bf16(dy).into(),
                direct.map(|t| s.bf16(t)).into(),
                s.bf16(dh).into(),
                len.into(),
            ],
        )
    }
}

impl<F: Real> Define<F> for GeluGrad {
    fn define(&self, m: &Mem<F>) {
        let (h, dy, dh) = (m.read(self.h), m.read(self.dy), m.write(self.dh));
        dh.copy_from_slice(dy);
        dh.par_chunks_mut(ROWS * 64)
            .enumerate()
            .for_each(|(i, dh)| times_gelu_slope(dh, row_block(h, i, 64)));
        if let Some(direct) = self.direct.map(|t| m.read(t)) {
            dh.iter_mut().zip(direct).for_each(|(dh, d)| *dh += *d);
        }
    }
}

/// `dx = dy w`, times `gelu'(pre)` where `x` was a GELU.
#[derive(Debug)]
pub(super) struct LinearInputGrad {
    pub(super) dy: Tensor,
    pub(super) w: Tensor,
    pub(super) pre: Option<Tensor>,
    pub(super) dx: Tensor,
    pub(super) rows: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

impl LinearInputGrad {
    fn tiling(&self, card: Card) -> Tiling {
        let kernels = if self.pre.is_some() { LINEAR_INPUT_GRAD_GELU } else { LINEAR_INPUT_GRAD };
        affine_tiling(card, kernels, [self.rows, self.k, self.n])
    }
}

impl Op for LinearInputGrad {
    fn io(&self) -> Io {
        Io::new([Some(self.dy), Some(self.w), self.pre], [self.dx])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &LinearInputGrad { dy, w, pre, dx, rows, n, k } = self;
        let tiling = self.tiling(s.card());
        let dy = tiling::Matrix { at: s.bf16(dy), shape: [rows, n], lies: Lies::Along };
        let w = tiling::Matrix { at: s.bf16(w), shape: [n, k], lies: Lies::Across };
        let mut args: Vec<Arg> = vec![tiling.left(s, dy)?, tiling.right(s, w)?];
        for t in pre.into_iter().chain([dx]) {
            args.push(tiling.beside(s, s.bf16(t), [rows, k])?);
        }
        args.extend([rows, n, k].map(Arg::from));
        tiling.launch(s, &args)
    }
    fn flops(&self) -> u64 {
        2 * (self.rows * self.n * self.k) as u64
    }
    /// The gradient of GELU's value, written and read.
    fn folded(&self) -> Vec<Tensor> {
        if self.pre.is_some() { vec![self.dx; 2] } else { Vec::new() }
    }
    fn cycles(&self, card: Card) -> Option<usize> {
        Some(self.tiling(card).cycles())
    }
}

impl<F: Real> Define<F> for LinearInputGrad {
    fn define(&self, m: &Mem<F>) {
        let &LinearInputGrad { rows, n, k, .. } = self;
        let (dy, w, dx) = (m.read(self.dy), m.read(self.w), m.write(self.dx));
        let (a, b) = (Mat::rows(dy, [rows, n]), Mat::rows(w, [n, k]));
        gemm(MatMut::rows(dx, [rows, k]), a, b, F::ONE, Dst::Replace, Threads::All);
        if let Some(h) = self.pre.map(|t| m.read(t)) {
            dx.par_chunks_mut(ROWS * k)
                .enumerate()
                .for_each(|(i, dx)| times_gelu_slope(dx, row_block(h, i, k)));
        }
    }
}

/// Records `dw = dyᵀ x` and `db = sum over rows of dy`.
pub(super) fn weight_grad(d: &mut Adjoint, dy: Tensor, x: Tensor, w: Tensor, b: Tensor) {
    let grad = WeightGrad::of(d.tape, dy, w, b);
    d.tape.push(LinearWeightGrad { dy, x, grad });
    grad.leave(d, w, b);
}

/// [`WeightGrad`] for rows that are a tensor.
#[derive(Debug)]
struct LinearWeightGrad {
    dy: Tensor,
    x: Tensor,
    grad: WeightGrad,
}

impl Op for LinearWeightGrad {
    fn io(&self) -> Io {
        Io::new([self.dy, self.x], self.grad.writes()).scratch([self.grad.scratch()])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let split = self.grad.split(s.card());
        split.launch(s, s.workspace(split.bytes()), s.bf16(self.dy), s.bf16(self.x))
    }
    fn flops(&self) -> u64 {
        self.grad.flops()
    }
    /// The sums of its columns.
    fn folded(&self) -> Vec<Tensor> {
        vec![self.dy]
    }
    fn cycles(&self, card: Card) -> Option<usize> {
        Some(self.grad.split(card).cycles())
    }
}

impl<F: Real> Define<F> for LinearWeightGrad {
    fn define(&self, m: &Mem<F>) {
        self.grad.define(m, m.read(self.dy), m.read(self.x));
    }
}
