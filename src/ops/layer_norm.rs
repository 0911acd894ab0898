//! `y = (x - mean(x)) rstd(x) gamma + beta`, over the last axis; variance biased, epsilon 1e-6.
//!
//! Forward keeps `mean` and `rstd` (one each per row); the gradient needs them, `x` and `gamma`, and adds the
//! gradient that other readers of `x` have left: the skip connection's, in a transformer.
use super::{ROWS, assert_vectors, lanes, row_block};
use crate::machine::cuda::{Launch, Result, Stream};
use crate::machine::{Mem, Real};
use crate::tape::{Adjoint, Define, Io, Op, Tape, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

const EPS: f64 = 1e-6;

/// Kernels for rows of at most `cols` columns.
struct Kernels {
    cols: usize,
    forward: &'static str,
    rows: usize, // that a warp of `forward` takes
    grad: &'static str,
    warps: usize, // of a block of `grad`
}

const fn kernels(
    cols: usize,
    forward: &'static str,
    rows: usize,
    grad: &'static str,
    warps: usize,
) -> Kernels {
    Kernels { cols, forward, rows, grad, warps }
}

/// Laid out as in kernels/layer_norm.cu.
const KERNELS: [Kernels; 5] = [
    kernels(256, "layer_norm_256", 2, "layer_norm_grad_256", 24),
    kernels(512, "layer_norm_512", 2, "layer_norm_grad_512", 24),
    kernels(768, "layer_norm_768", 1, "layer_norm_grad_768", 16),
    kernels(1024, "layer_norm_1024", 1, "layer_norm_grad_1024", 12),
    kernels(2048, "layer_norm_2048", 1, "layer_norm_grad_2048", 8),
];
/// Warps of a block of the forward kernels.
const WARPS: usize = 4;

fn kernels_for(cols: usize) -> &'static Kernels {
    assert_vectors("layer_norm", cols);
    let fits = KERNELS.iter().find(|k| cols <= k.cols);
    fits.unwrap_or_else(|| panic!("on a GPU layer_norm takes rows of at most 2048 elements, not {cols}"))
}

/// Records layer normalisation of the rows of `x` (`[.., cols]`) by `gamma` and `beta` (`[cols]`).
#[track_caller]
pub fn layer_norm(t: &mut Tape, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor {
    let cols = *t.shape(x).last().expect("layer_norm needs an axis");
    t.expect_shape("gamma", gamma, &[cols]);
    t.expect_shape("beta", beta, &[cols]);
    let rows = t.len(x) / cols;
    let (y, mean, rstd) = (t.activation_like(x), t.temp(&[rows]), t.temp(&[rows]));
    t.push(LayerNorm { x, gamma, beta, y, mean, rstd, rows, cols });
    y
}

#[derive(Clone, Copy, Debug)]
struct LayerNorm {
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
    rows: usize,
    cols: usize,
}

impl Op for LayerNorm {
    fn io(&self) -> Io {
        Io::new([self.x, self.gamma, self.beta], [self.y, self.mean, self.rstd])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dy) = d.of(self.y) else { return };
        let skip = d.take(self.x);
        let dx = d.tape.activation_like(self.x);
        let (dgamma, dbeta) = (d.tape.like(self.gamma), d.tape.like(self.beta));
        let partial = d.tape.temp(&[self.rows.div_ceil(ROWS), 2, self.cols]);
        d.tape.push(LayerNormGrad { of: *self, dy, skip, dx, dgamma, dbeta, partial });
        d.add(self.x, dx);
        d.add(self.gamma, dgamma);
        d.add(self.beta, dbeta);
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { x, gamma, beta, y, mean, rstd, rows, cols } = self;
        let kernels = kernels_for(cols);
        let grid = [rows.div_ceil(WARPS * kernels.rows), 1, 1];
        s.launch(
            Launch { kernel: kernels.forward, grid, block: 32 * WARPS, shared: 0 },
            &[
                s.bf16(x).into(),
                s.f32(gamma).into(),
                s.f32(beta).into(),
                s.bf16(y).into(),
                s.f32(mean).into(),
                s.f32(rstd).into(),
                rows.into(),
                cols.into(),
            ],
        )
    }
}

impl<F: Real> Define<F> for LayerNorm {
    fn define(&self, m: &Mem<F>) {
        let (x, gamma, beta) = (m.read(self.x), m.read(self.gamma), m.read(self.beta));
        let (y, mean, rstd) = (m.write(self.y), m.write(self.mean), m.write(self.rstd));
        let block = ROWS * self.cols;
        (x.par_chunks(block), y.par_chunks_mut(block), mean.par_chunks_mut(ROWS), rstd.par_chunks_mut(ROWS))
            .into_par_iter()
            .for_each(|(x, y, mean, rstd)| normalise(x, gamma, beta, y, mean, rstd));
    }
}

#[multiversion(targets = "simd")]
fn normalise<F: Real>(x: &[F], gamma: &[F], beta: &[F], y: &mut [F], mean: &mut [F], rstd: &mut [F]) {
    let cols = gamma.len();
    let n = F::of(cols as f64);
    for (r, (x, y)) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)).enumerate() {
        let mu = lanes([x], |[x]| x) / n;
        let var = lanes([x], |[x]| (x - mu) * (x - mu)) / n;
        let scale = F::ONE / (var + F::of(EPS)).sqrt();
        (mean[r], rstd[r]) = (mu, scale);
        for c in 0..cols {
            y[c] = (x[c] - mu) * scale * gamma[c] + beta[c];
        }
    }
}

/// `dx = rstd (g - mean(g) - xhat mean(g xhat)) + skip`, with `g = dy gamma` and `xhat = (x - mean) rstd`;
/// `dgamma = sum dy xhat` and `dbeta = sum dy` over rows, by blocks of rows added in order.
#[derive(Debug)]
struct LayerNormGrad {
    of: LayerNorm,
    dy: Tensor,
    skip: Option<Tensor>,
    dx: Tensor,
    dgamma: Tensor,
    dbeta: Tensor,
    partial: Tensor,
}

impl Op for LayerNormGrad {
    fn io(&self) -> Io {
        let LayerNorm { x, gamma, mean, rstd, .. } = self.of;
        let reads = [Some(self.dy), Some(x), Some(gamma), Some(mean), Some(rstd), self.skip];
        Io::new(reads, [self.dx, self.dgamma, self.dbeta]).scratch([self.partial])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let LayerNorm { x, gamma, mean, rstd, rows, cols, .. } = self.of;
        let kernels = kernels_for(cols);
        let blocks = rows.div_ceil(kernels.warps).min(s.card().processors);
        let parts = s.workspace(blocks * 2 * cols * size_of::<f32>());
        s.launch(
            Launch { kernel: kernels.grad, grid: [blocks, 1, 1], block: 32 * kernels.warps, shared: 0 },
            &[
                s.bf16(self.dy).into(),
                s.bf16(x).into(),
                s.f32(gamma).into(),
                s.f32(mean).into(),
                s.f32(rstd).into(),
                self.skip.map(|t| s.bf16(t)).into(),
                s.bf16(self.dx).into(),
                parts.into(),
                rows.into(),
                cols.into(),
            ],
        )?;
        let grid = [(2 * cols).div_ceil(32), 1, 1];
        s.launch(
            Launch { kernel: "layer_norm_grad_sum", grid, block: 1024, shared: 0 },
            &[parts.into(), s.f32(self.dgamma).into(), s.f32(self.dbeta).into(), blocks.into(), cols.into()],
        )
    }
}

impl<F: Real> Define<F> for LayerNormGrad {
    fn define(&self, m: &Mem<F>) {
        let LayerNorm { x, gamma, mean, rstd, cols, .. } = self.of;
        let (dy, x, gamma) = (m.read(self.dy), m.read(x), m.read(gamma));
        let (mean, rstd, skip) = (m.read(mean), m.read(rstd), self.skip.map(|t| m.read(t)));
        let (dx, partial) = (m.write(self.dx), m.write(self.partial));
        let block = ROWS * cols;
        dx.par_chunks_mut(block).zip(partial.par_chunks_mut(2 * cols)).enumerate().for_each(
            |(i, (dx, partial))| {
                let rows = Rows {
                    dy: row_block(dy, i, cols),
                    x: row_block(x, i, cols),
                    gamma,
                    mean: row_block(mean, i, 1),
                    rstd: row_block(rstd, i, 1),
                    skip: skip.map(|s| row_block(s, i, cols)),
                };
                normalise_grad(rows, dx, partial);
            },
        );
        let (dgamma, dbeta) = (m.write(self.dgamma), m.write(self.dbeta));
        dgamma.fill(F::ZERO);
        dbeta.fill(F::ZERO);
        for partial in partial.chunks_exact(2 * cols) {
            for c in 0..cols {
                dgamma[c] += partial[c];
                dbeta[c] += partial[cols + c];
            }
        }
    }
}

/// A block of rows and what their gradient needs.
struct Rows<'a, F> {
    dy: &'a [F],
    x: &'a [F],
    gamma: &'a [F],
    mean: &'a [F],
    rstd: &'a [F],
    skip: Option<&'a [F]>,
}

#[multiversion(targets = "simd")]
fn normalise_grad<F: Real>(rows: Rows<F>, dx: &mut [F], partial: &mut [F]) {
    let (gamma, cols) = (rows.gamma, rows.gamma.len());
    let n = F::of(cols as f64);
    let (dgamma, dbeta) = partial.split_at_mut(cols);
    dgamma.fill(F::ZERO);
    dbeta.fill(F::ZERO);
    for (r, dx) in dx.chunks_exact_mut(cols).enumerate() {
        let row = r * cols..(r + 1) * cols;
        let (dy, x) = (&rows.dy[row.clone()], &rows.x[row.clone()]);
        let (mu, scale) = (rows.mean[r], rows.rstd[r]);
        let mean_g = lanes([dy, gamma], |[dy, gamma]| dy * gamma) / n;
        let mean_gx = lanes([dy, gamma, x], |[dy, gamma, x]| dy * gamma * ((x - mu) * scale)) / n;
        for c in 0..cols {
            let xhat = (x[c] - mu) * scale;
            dx[c] = scale * (dy[c] * gamma[c] - mean_g - xhat * mean_gx);
            dgamma[c] += dy[c] * xhat;
            dbeta[c] += dy[c];
        }
        if let Some(skip) = rows.skip {
            for (dx, s) in dx.iter_mut().zip(&skip[row]) {
                *dx += *s;
            }
        }
    }
}
