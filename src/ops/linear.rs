//! `y = x wᵀ + b`, with what follows it in a transformer folded in: GELU, or a residual connection.
//!
//! GELU is exact, `gelu(h) = h (1 + erf(h/√2)) / 2`. The layer that reads its value gets the pre-activation `h`
//! with it ([`Gelu`]), so that its input gradient goes through `gelu'(h)` on the way out.
use super::linear_grad::{GeluGrad, LinearInputGrad, weight_grad};
use super::tiling::{self, Half, Kernels, Leaving, Lies, Product, Tiling, in_vectors};
use crate::machine::cuda::{Arg, Card, Ptr, Result, Stream};
use crate::machine::{Into as Dst, Mat, MatMut, Mem, Real, Threads, for_each_tile, gemm, spread};
use crate::tape::{Adjoint, Define, Io, Op, Tape, Tensor};
use multiversion::multiversion;
use std::f64::consts::FRAC_1_SQRT_2;

pub(super) const LINEAR: Kernels = Kernels::new(
    ["linear", "linear_small"],
    "linear_wide",
    Half::PingPong("linear_pingpong"),
    Leaving { instructions: 270, tensors: 1, stores: 0 },
);
const LINEAR_REAL: Kernels = Kernels { portable: ["linear_real", "linear_real_small"], hopper: None };
const LINEAR_GELU: Kernels = Kernels::new(
    ["linear_gelu", "linear_gelu_small"],
    "linear_gelu_wide",
    Half::PingPong("linear_gelu_pingpong"),
    Leaving { instructions: 2320, tensors: 2, stores: 0 },
);
const LINEAR_RESIDUAL: Kernels = Kernels::new(
    ["linear_residual", "linear_residual_small"],
    "linear_residual_wide",
    Half::PingPong("linear_residual_pingpong"),
    Leaving { instructions: 580, tensors: 2, stores: 0 },
);

pub(super) const KERNELS: [Kernels; 3] = [LINEAR, LINEAR_GELU, LINEAR_RESIDUAL];

/// GELU of a linear layer's output, and what it was before.
#[derive(Clone, Copy, Debug)]
pub struct Gelu {
    /// The layer's output, `[.., n]`.
    pub pre: Tensor,
    /// `gelu(pre)`.
    pub value: Tensor,
}

/// What a linear layer reads: any tensor, or the GELU of a layer before it.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    value: Tensor,
    pre: Option<Tensor>,
}
impl From<Tensor> for Operand {
    fn from(value: Tensor) -> Self {
        Operand { value, pre: None }
    }
}
impl From<Gelu> for Operand {
    fn from(g: Gelu) -> Self {
        Operand { value: g.value, pre: Some(g.pre) }
    }
}

/// Records `x wᵀ + b` for `x: [.., k]`, `w: [n, k]`, `b: [n]`.
#[track_caller]
pub fn linear(t: &mut Tape, x: impl Into<Operand>, w: Tensor, b: Tensor) -> Tensor {
    record(t, x.into(), w, b, |t, shape| (t.activation(shape), Epilogue::Bias))
}

/// Records the same, left in full precision: for what is read out, such as an age. Its gradient is an activation.
#[track_caller]
pub fn linear_real(t: &mut Tape, x: impl Into<Operand>, w: Tensor, b: Tensor) -> Tensor {
    record(t, x.into(), w, b, |t, shape| (t.temp(shape), Epilogue::Real))
}

/// Records `gelu(x wᵀ + b)`.
#[track_caller]
pub fn linear_gelu(t: &mut Tape, x: impl Into<Operand>, w: Tensor, b: Tensor) -> Gelu {
    let mut pre = None;
    let value = record(t, x.into(), w, b, |t, shape| {
        let h = t.activation(shape);
        pre = Some(h);
        (t.activation(shape), Epilogue::Gelu(h))
    });
    Gelu { pre: pre.expect("set above"), value }
}

/// Records `skip + scale (x wᵀ + b)`; `scale: [batch]` has a factor per sample (drop path), or is left out for 1.
#[track_caller]
pub fn linear_residual(
    t: &mut Tape,
    x: impl Into<Operand>,
    w: Tensor,
    b: Tensor,
    skip: Tensor,
    scale: Option<Tensor>,
) -> Tensor {
    let epilogue = Epilogue::Residual { skip, scale };
    let y = record(t, x.into(), w, b, |t, shape| (t.activation(shape), epilogue));
    t.expect_shape("skip", skip, t.shape(y));
    if let Some(s) = scale {
        t.expect_shape("scale", s, &t.shape(y)[..1]);
    }
    y
}

#[track_caller]
fn record(
    t: &mut Tape,
    x: Operand,
    w: Tensor,
    b: Tensor,
    output: impl FnOnce(&mut Tape, &[usize]) -> (Tensor, Epilogue),
) -> Tensor {
    let &[n, k] = t.shape(w) else { panic!("w must be a matrix, not {:?}", t.shape(w)) };
    assert_eq!(t.shape(x.value).last(), Some(&k), "x has {:?}, w has {:?}", t.shape(x.value), [n, k]);
    t.expect_shape("b", b, &[n]);
    let mut shape = t.shape(x.value).to_vec();
    let rows = t.len(x.value) / k;
    *shape.last_mut().expect("x has an axis") = n;
    let (y, epilogue) = output(t, &shape);
    t.push(Linear { x, w, b, y, epilogue, samples: shape[0], rows, n, k });
    y
}

/// What is done to a product before it is left.
#[derive(Clone, Copy, Debug)]
enum Epilogue {
    Bias,
    /// The same, in full precision.
    Real,
    Gelu(Tensor),
    Residual {
        skip: Tensor,
        scale: Option<Tensor>,
    },
}

impl Epilogue {
    fn kernels(self) -> Kernels {
        match self {
            Epilogue::Bias => LINEAR,
            Epilogue::Real => LINEAR_REAL,
            Epilogue::Gelu(_) => LINEAR_GELU,
            Epilogue::Residual { .. } => LINEAR_RESIDUAL,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Linear {
    x: Operand,
    w: Tensor,
    b: Tensor,
    y: Tensor,
    epilogue: Epilogue,
    samples: usize,
    rows: usize,
    n: usize,
    k: usize,
}

impl Op for Linear {
    fn io(&self) -> Io {
        let mut io = Io::new([self.x.value, self.w, self.b], [self.y]);
        match self.epilogue {
            Epilogue::Bias | Epilogue::Real => {}
            Epilogue::Gelu(h) => io.writes.push(h),
            Epilogue::Residual { skip, scale } => io.reads.extend([Some(skip), scale].into_iter().flatten()),
        }
        io
    }
    fn vjp(&self, d: &mut Adjoint) {
        let dy = match self.epilogue {
            Epilogue::Bias | Epilogue::Real => d.of(self.y),
            Epilogue::Residual { skip, scale } => d.of(self.y).map(|dy| {
                d.add(skip, dy);
                scale.map_or(dy, |s| super::drop_path(d.tape, dy, s))
            }),
            Epilogue::Gelu(h) => match d.of(self.y) {
                None => d.of(h),
                Some(dy) => {
                    let (direct, dh) = (d.take(h), d.tape.like(h));
                    let len = d.tape.len(h);
                    d.tape.push(GeluGrad { h, dy, direct, dh, len });
                    Some(dh)
                }
            },
        };
        let Some(dy) = dy else { return };
        let &Linear { x, w, b, rows, n, k, .. } = self;
        weight_grad(d, dy, x.value, w, b);
        let into = x.pre.unwrap_or(x.value);
        if d.wants(into) {
            let dx = d.tape.activation_like(into);
            d.tape.push(LinearInputGrad { dy, w, pre: x.pre, dx, rows, n, k });
            d.add(into, dx);
        }
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Linear { b, y, rows, n, k, samples, .. } = self;
        let product = Affine { x: s.bf16(self.x.value), w: s.bf16(self.w), b: s.f32(b), rows, n, k };
        let kernels = self.epilogue.kernels();
        match self.epilogue {
            Epilogue::Bias => product.launch(s, kernels, &[s.bf16(y)], &[]),
            Epilogue::Real => product.launch(s, kernels, &[s.f32(y)], &[]),
            Epilogue::Gelu(h) => product.launch(s, kernels, &[s.bf16(h), s.bf16(y)], &[]),
            Epilogue::Residual { skip, scale } => {
                let scale = scale.map(|t| s.f32(t)).into();
                product.launch(s, kernels, &[s.bf16(skip), s.bf16(y)], &[scale, (rows / samples).into()])
            }
        }
    }
    fn flops(&self) -> u64 {
        2 * (self.rows * self.n * self.k) as u64
    }
    /// GELU reads what the product has written; a norm that adds the skip connection reads the product too.
    fn folded(&self) -> Vec<Tensor> {
        match self.epilogue {
            Epilogue::Bias | Epilogue::Real => Vec::new(),
            Epilogue::Gelu(h) => vec![h],
            Epilogue::Residual { .. } => vec![self.y],
        }
    }
    fn cycles(&self, card: Card) -> Option<usize> {
        Some(affine_tiling(card, self.epilogue.kernels(), [self.rows, self.n, self.k]).cycles())
    }
}

impl<F: Real> Define<F> for Linear {
    fn define(&self, m: &Mem<F>) {
        let &Linear { rows, n, k, .. } = self;
        let (x, w, b, y) = (m.read(self.x.value), m.read(self.w), m.read(self.b), m.write(self.y));
        let (x, w) = (Mat::rows(x, [rows, k]), Mat::rows(w, [n, k]));
        match self.epilogue {
            Epilogue::Bias | Epilogue::Real => affine(y, x, w, b),
            Epilogue::Gelu(h) => for_each_tile([m.write(h), y], [rows, n], |at, [mut h, mut y]| {
                tile_product(&mut h, at, x, w);
                gelu(&mut h, &b[at[1]..], &mut y);
            }),
            Epilogue::Residual { skip, scale } => {
                let (skip, scale) = (Mat::rows(m.read(skip), [rows, n]), scale.map(|s| m.read(s)));
                let per_sample = rows / self.samples;
                for_each_tile([y], [rows, n], |at @ [row, col], [mut y]| {
                    tile_product(&mut y, at, x, w);
                    let scale = |r: usize| scale.map_or(F::ONE, |s| s[(row + r) / per_sample]);
                    add_residual(&mut y, &b[col..], |r| &skip.row(row + r)[col..], scale);
                });
            }
        }
    }
}

/// `x wᵀ + b` of what lies at these addresses: `x: [rows, k]`, `w: [n, k]`, `b: [n]`.
pub(super) struct Affine {
    pub(super) x: Ptr,
    pub(super) w: Ptr,
    pub(super) b: Ptr,
    pub(super) rows: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

impl Affine {
    /// Launches one of `kernels`, which takes `beside`, tensors of the product's shape, between its operands and its
    /// extents, and `rest` after these.
    pub(super) fn launch(&self, s: &Stream, kernels: Kernels, beside: &[Ptr], rest: &[Arg]) -> Result<()> {
        let &Affine { x, w, b, rows, n, k } = self;
        let tiling = affine_tiling(s.card(), kernels, [rows, n, k]);
        let x = tiling::Matrix { at: x, shape: [rows, k], lies: Lies::Along };
        let w = tiling::Matrix { at: w, shape: [n, k], lies: Lies::Along };
        let mut args: Vec<Arg> = vec![tiling.left(s, x)?, tiling.right(s, w)?, b.into()];
        for &at in beside {
            args.push(tiling.beside(s, at, [rows, n])?);
        }
        args.extend([rows, n, k].map(Arg::from));
        args.extend_from_slice(rest);
        tiling.launch(s, &args)
    }
}

/// How a product is cut whose c is `[rows, n]`, over a sum of k.
pub(super) fn affine_tiling(card: Card, kernels: Kernels, [rows, n, k]: [usize; 3]) -> Tiling {
    Tiling::of(card, kernels, Product { shape: [rows, n], sum: k, in_vectors: in_vectors(n, k) })
}

/// `y = x wᵀ + b`, tile by tile: what follows a product is done while it is in the cache.
pub(super) fn affine<F: Real>(y: &mut [F], x: Mat<F>, w: Mat<F>, b: &[F]) {
    for_each_tile([y], [x.shape()[0], b.len()], |at, [mut y]| {
        tile_product(&mut y, at, x, w);
        add_bias(&mut y, &b[at[1]..]);
    });
}

/// The tile of `x wᵀ` that begins at row and column `at`.
fn tile_product<F: Real>(c: &mut MatMut<F>, [row, col]: [usize; 2], x: Mat<F>, w: Mat<F>) {
    let [rows, cols] = c.shape();
    let x = x.sub_rows(row, row + rows);
    spread(w.sub_rows(col, col + cols), |w| {
        gemm(c.sub_rows(0, rows), x, w.t(), F::ONE, Dst::Replace, Threads::One);
    });
}

#[multiversion(targets = "simd")]
fn add_bias<F: Real>(y: &mut MatMut<F>, b: &[F]) {
    for r in 0..y.shape()[0] {
        y.row(r).iter_mut().zip(b).for_each(|(y, b)| *y += *b);
    }
}

#[multiversion(targets = "simd")]
fn add_residual<'a, F: Real>(
    y: &mut MatMut<F>,
    b: &[F],
    skip: impl Fn(usize) -> &'a [F],
    scale: impl Fn(usize) -> F,
) {
    for r in 0..y.shape()[0] {
        let scale = scale(r);
        for ((y, b), skip) in y.row(r).iter_mut().zip(b).zip(skip(r)) {
            *y = *skip + scale * (*y + *b);
        }
    }
}

/// `h += b`, then `y = gelu(h)`.
#[multiversion(targets = "simd")]
fn gelu<F: Real>(h: &mut MatMut<F>, b: &[F], y: &mut MatMut<F>) {
    for r in 0..h.shape()[0] {
        for ((h, b), y) in h.row(r).iter_mut().zip(b).zip(y.row(r)) {
            *h += *b;
            *y = F::of(0.5) * *h * (F::ONE + (*h * F::of(FRAC_1_SQRT_2)).erf());
        }
    }
}
