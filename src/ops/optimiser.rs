//! The optimiser's operations, each one pass over a flat range that holds every parameter (or every gradient,
//! every moment): the gradient norm and its clip factor, AdamW, the moving average, gradient accumulation.
use super::lanes;
use crate::machine::cuda::{Arg, Launch, Result, Stream};
use crate::machine::{Mem, Real};
use crate::tape::{Define, Io, Op, Tape, Tensor};
use bytemuck::{NoUninit, Pod, Zeroable};
use multiversion::multiversion;
use rayon::prelude::*;

/// Elements that one task takes: fixed, so that sums do not depend on the threads.
const BLOCK: usize = 1 << 15;

/// Threads of a block of kernels/optimiser.cu.
const THREADS: usize = 256;

/// One pass over a flat range: a thread takes two vectors of 4 elements.
fn pass(kernel: &'static str, len: usize) -> Launch {
    assert!(len.is_multiple_of(4), "on a GPU {kernel} takes a multiple of 4 elements, not {len}");
    Launch { kernel, grid: [len.div_ceil(THREADS * 2 * 4), 1, 1], block: THREADS, shared: 0 }
}

/// A gradient's norm and what to multiply it by.
#[derive(Clone, Copy, Debug)]
pub struct Clip {
    /// Euclidean norm of all gradients, `[]`.
    pub norm: Tensor,
    /// `min(1, max_norm / (norm + 1e-6))`, `[]`.
    pub factor: Tensor,
}

/// Records the norm of the flat gradients and the factor that clips it to `max_norm` (infinite: never).
pub fn grad_norm(t: &mut Tape, grads: Tensor, max_norm: f64) -> Clip {
    let (norm, factor) = (t.temp(&[]), t.temp(&[]));
    let partial = t.temp(&[t.len(grads).div_ceil(BLOCK)]);
    t.push(GradNorm { grads, norm, factor, partial, len: t.len(grads), max_norm });
    Clip { norm, factor }
}

#[derive(Debug)]
struct GradNorm {
    grads: Tensor,
    norm: Tensor,
    factor: Tensor,
    partial: Tensor,
    len: usize,
    max_norm: f64,
}

impl Op for GradNorm {
    fn io(&self) -> Io {
        Io::new([self.grads], [self.norm, self.factor]).scratch([self.partial])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { grads, norm, factor, len, max_norm, .. } = self;
        // Blocks walk over the range, as many as run at a time; a thread has four vectors under way.
        let blocks = len.div_ceil(THREADS * 4 * 4).min(s.card().processors * 8);
        let parts = s.workspace(blocks * size_of::<f32>());
        s.launch(
            Launch { grid: [blocks, 1, 1], ..pass("grad_norm", len) },
            &[s.f32(grads).into(), parts.into(), len.into()],
        )?;
        s.launch(
            Launch { kernel: "grad_norm_factor", grid: [1, 1, 1], block: THREADS, shared: 0 },
            &[parts.into(), s.f32(norm).into(), s.f32(factor).into(), blocks.into(), max_norm.into()],
        )
    }
}

impl<F: Real> Define<F> for GradNorm {
    fn define(&self, m: &Mem<F>) {
        let (grads, partial) = (m.read(self.grads), m.write(self.partial));
        grads.par_chunks(BLOCK).zip(partial.par_iter_mut()).for_each(|(g, sum)| *sum = sum_of_squares(g));
        let norm = partial.iter().map(|s| s.f64()).sum::<f64>().sqrt();
        m.write(self.norm)[0] = F::of(norm);
        m.write(self.factor)[0] = F::of((self.max_norm / (norm + 1e-6)).min(1.0));
    }
}

#[multiversion(targets = "simd")]
fn sum_of_squares<F: Real>(x: &[F]) -> F {
    lanes([x], |[x]| x * x)
}

/// A run of parameters that are updated alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The first element of the run.
    pub from: usize,
    /// One past its last.
    pub to: usize,
    /// Decoupled weight decay.
    pub decay: f64,
    /// What the learning rate is multiplied by (layer decay).
    pub rate: f64,
}

/// AdamW's constants (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamConstants {
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// The flat tensors that AdamW works on, `[n]` each.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    /// Parameters, updated.
    pub params: Tensor,
    /// Their gradients.
    pub grads: Tensor,
    /// First moment, updated.
    pub m: Tensor,
    /// Second moment, updated.
    pub v: Tensor,
}

/// Records one step of AdamW on the elements in `ranges`:
/// `p -= rate lr decay p`, then `p -= rate lr m̂ / (sqrt(v̂) + eps)`, of gradients multiplied by `factor: []`.
/// `schedule: [3]` holds the learning rate and the bias corrections `1 - β₁ᵗ`, `1 - β₂ᵗ` of the step.
pub fn adamw(
    t: &mut Tape,
    moments: Moments,
    factor: Tensor,
    schedule: Tensor,
    constants: AdamConstants,
    ranges: Vec<Range>,
) {
    t.expect_shape("schedule", schedule, &[3]);
    t.push(AdamW { moments, factor, schedule, constants, ranges, len: t.len(moments.params) });
}

#[derive(Debug)]
struct AdamW {
    moments: Moments,
    factor: Tensor,
    schedule: Tensor,
    constants: AdamConstants,
    ranges: Vec<Range>,
    len: usize,
}

impl Op for AdamW {
    fn io(&self) -> Io {
        let Moments { params, grads, m, v } = self.moments;
        Io::new([params, grads, m, v, self.factor, self.schedule], [params, m, v])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let Moments { params, grads, m, v } = self.moments;
        s.launch(
            pass("adamw", self.len),
            &[
                s.f32(params).into(),
                s.bf16_copy(params).into(),
                s.f32(grads).into(),
                s.f32(m).into(),
                s.f32(v).into(),
                s.f32(self.factor).into(),
                s.f32(self.schedule).into(),
                self.len.into(),
                Arg::bytes(&DeviceConstants::of(self.constants)),
                Arg::bytes(&DeviceRanges::of(&self.ranges)),
            ],
        )
    }
}

/// [`AdamConstants`] as kernels/optimiser.cu takes them.
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct DeviceConstants {
    betas: [f32; 2],
    fresh: [f32; 2], // 1 - beta
    eps: f32,
}

impl DeviceConstants {
    fn of(AdamConstants { betas, eps }: AdamConstants) -> Self {
        let fresh = betas.map(|b| (1.0 - b) as f32);
        DeviceConstants { betas: betas.map(|b| b as f32), fresh, eps: eps as f32 }
    }
}

/// A [`Range`] as kernels take it.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DeviceRange {
    from: u32,
    to: u32,
    decay: f32,
    rate: f32,
}

/// All of them, in ascending order.
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct DeviceRanges {
    at: [DeviceRange; 64],
    count: i32,
}

impl DeviceRanges {
    fn of(ranges: &[Range]) -> Self {
        assert!(
            (1..=64).contains(&ranges.len()),
            "on a GPU adamw takes 1 to 64 ranges, not {}",
            ranges.len()
        );
        let mut at = [DeviceRange::zeroed(); 64];
        for (at, r) in at.iter_mut().zip(ranges) {
            assert!(
                r.from.is_multiple_of(4) && r.to.is_multiple_of(4),
                "on a GPU ranges are whole vectors: {r:?}"
            );
            let element = |n: usize| n.try_into().expect("fewer than 2³² parameters");
            *at = DeviceRange {
                from: element(r.from),
                to: element(r.to),
                decay: r.decay as f32,
                rate: r.rate as f32,
            };
        }
        DeviceRanges { at, count: ranges.len() as i32 }
    }
}

impl<F: Real> Define<F> for AdamW {
    fn define(&self, mem: &Mem<F>) {
        let (p, g) = (mem.write(self.moments.params), mem.read(self.moments.grads));
        let (m, v) = (mem.write(self.moments.m), mem.write(self.moments.v));
        let (factor, schedule) = (mem.read(self.factor)[0], mem.read(self.schedule));
        let AdamConstants { betas, eps } = self.constants;
        for range in &self.ranges {
            let at = range.from..range.to;
            let rate = schedule[0].f64() * range.rate;
            let update = Update {
                factor,
                betas: betas.map(F::of),
                fresh: betas.map(|b| F::of(1.0 - b)),
                keep: F::of(1.0 - rate * range.decay),
                step: F::of(rate / schedule[1].f64()),
                root: F::of(1.0 / schedule[2].f64().sqrt()),
                eps: F::of(eps),
            };
            (
                p[at.clone()].par_chunks_mut(BLOCK),
                g[at.clone()].par_chunks(BLOCK),
                m[at.clone()].par_chunks_mut(BLOCK),
                v[at].par_chunks_mut(BLOCK),
            )
                .into_par_iter()
                .for_each(|(p, g, m, v)| adamw_update(p, g, m, v, update));
        }
    }
}

#[derive(Clone, Copy)]
struct Update<F> {
    factor: F,
    betas: [F; 2],
    fresh: [F; 2],
    keep: F,
    step: F,
    root: F,
    eps: F,
}

#[multiversion(targets = "simd")]
fn adamw_update<F: Real>(p: &mut [F], g: &[F], m: &mut [F], v: &mut [F], u: Update<F>) {
    for ((p, g), (m, v)) in p.iter_mut().zip(g).zip(m.iter_mut().zip(v)) {
        let g = *g * u.factor;
        *m = u.betas[0] * *m + u.fresh[0] * g;
        *v = u.betas[1] * *v + u.fresh[1] * g * g;
        *p = u.keep * *p - u.step * *m / (v.sqrt() * u.root + u.eps);
    }
}

/// Records `average = decay average + (1 - decay) params`, with `decay: []` as data.
pub fn ema(t: &mut Tape, params: Tensor, average: Tensor, decay: Tensor) {
    t.push(Ema { params, average, decay, len: t.len(params) });
}

#[derive(Debug)]
struct Ema {
    params: Tensor,
    average: Tensor,
    decay: Tensor,
    len: usize,
}

impl Op for Ema {
    fn io(&self) -> Io {
        Io::new([self.params, self.average, self.decay], [self.average])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { params, average, decay, len } = self;
        s.launch(
            pass("ema", len),
            &[s.f32(params).into(), s.f32(average).into(), s.f32(decay).into(), len.into()],
        )
    }
}

impl<F: Real> Define<F> for Ema {
    fn define(&self, m: &Mem<F>) {
        let (params, average, decay) = (m.read(self.params), m.write(self.average), m.read(self.decay)[0]);
        average.par_chunks_mut(BLOCK).zip(params.par_chunks(BLOCK)).for_each(|(average, params)| {
            average.iter_mut().zip(params).for_each(|(a, p)| *a = decay * *a + (F::ONE - decay) * *p);
        });
    }
}

/// Records `sum = keep sum + grads`, with `keep: []` as data: 0 starts a new sum.
pub fn accumulate(t: &mut Tape, grads: Tensor, sum: Tensor, keep: Tensor) {
    t.push(Accumulate { grads, sum, keep, len: t.len(grads) });
}

#[derive(Debug)]
struct Accumulate {
    grads: Tensor,
    sum: Tensor,
    keep: Tensor,
    len: usize,
}

impl Op for Accumulate {
    fn io(&self) -> Io {
        Io::new([self.grads, self.sum, self.keep], [self.sum])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { grads, sum, keep, len } = self;
        s.launch(
            pass("accumulate", len),
            &[s.f32(grads).into(), s.f32(sum).into(), s.f32(keep).into(), len.into()],
        )
    }
}

impl<F: Real> Define<F> for Accumulate {
    fn define(&self, m: &Mem<F>) {
        let (grads, sum, keep) = (m.read(self.grads), m.write(self.sum), m.read(self.keep)[0]);
        sum.par_chunks_mut(BLOCK).zip(grads.par_chunks(BLOCK)).for_each(|(sum, grads)| {
            sum.iter_mut().zip(grads).for_each(|(s, g)| *s = keep * *s + *g);
        });
    }
}
