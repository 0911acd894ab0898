//! Losses of a predicted age: mean over the batch of L1, L2, Huber, or the divergence of a distribution over age
//! bins from a soft label (Peng et al., "Accurate brain age prediction with lightweight deep neural networks",
//! Medical Image Analysis 2021).
//!
//! Everything here is a few numbers a sample, computed in `f64` whatever the precision of the program.
use crate::machine::cuda::{Arg, Launch, Result, Stream};
use crate::machine::{Mem, Real};
use crate::tape::{Adjoint, Define, Io, Op, Tape, Tensor};
use bytemuck::NoUninit;
use libm::erf;
use serde::{Deserialize, Serialize};
use std::f64::consts::FRAC_1_SQRT_2;

/// Warps of a block of kernels/age_loss.cu; each takes a sample.
const WARPS: usize = 8;

/// Equal age bins for a soft label.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bins {
    /// Centre of the first bin, in the unit of the target.
    pub first: f64,
    /// Distance of centres.
    pub step: f64,
    /// How many.
    pub count: usize,
    /// Standard deviation of the label around the true age.
    pub sigma: f64,
}

impl Bins {
    /// Centre of bin `i`.
    pub fn centre(&self, i: usize) -> f64 {
        self.first + i as f64 * self.step
    }
    /// The label's mass in each bin: a normal density around `age`, cut to the bins and brought to sum 1.
    pub fn label(&self, age: f64) -> impl Iterator<Item = f64> + use<> {
        let (bins, scale) = (*self, FRAC_1_SQRT_2 / self.sigma);
        let below = move |x: f64| 0.5 * (1.0 + erf((x - age) * scale));
        let edge = move |i: usize| bins.centre(i) - bins.step / 2.0;
        let total = (below(edge(bins.count)) - below(edge(0))).max(f64::MIN_POSITIVE);
        (0..bins.count).map(move |i| (below(edge(i + 1)) - below(edge(i))) / total)
    }
    /// The expected age under the softmax of `logits`.
    pub fn expectation(&self, logits: impl Iterator<Item = f64> + Clone) -> f64 {
        let log_sum = log_sum_exp(logits.clone());
        logits.enumerate().map(|(i, x)| (x - log_sum).exp() * self.centre(i)).sum()
    }
}

fn log_sum_exp(x: impl Iterator<Item = f64> + Clone) -> f64 {
    let max = x.clone().fold(f64::NEG_INFINITY, f64::max);
    max + x.map(|x| (x - max).exp()).sum::<f64>().ln()
}

/// A loss as kernels/age_loss.cu takes it.
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Loss {
    threshold: f64,
    first: f64,
    step: f64,
    sigma: f64,
    kind: i32,
    outputs: i32,
}

/// How far a prediction is from the age.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgeLoss {
    /// `|pred - age|`.
    L1,
    /// `(pred - age)²`.
    L2,
    /// `e²/2` for `e = |pred - age|` below the threshold, `threshold (e - threshold/2)` above.
    Huber(f64),
    /// Kullback-Leibler divergence of the softmax of `pred` (a logit per bin) from the soft label.
    SoftLabel(Bins),
}

impl AgeLoss {
    /// Values that a prediction has.
    pub fn outputs(&self) -> usize {
        if let AgeLoss::SoftLabel(bins) = self { bins.count } else { 1 }
    }
    /// As kernels take it.
    fn argument(&self) -> Arg {
        let alone = |kind, threshold| Loss { threshold, first: 0.0, step: 0.0, sigma: 0.0, kind, outputs: 1 };
        Arg::bytes(&match *self {
            AgeLoss::L1 => alone(0, 0.0),
            AgeLoss::L2 => alone(1, 0.0),
            AgeLoss::Huber(threshold) => alone(2, threshold),
            AgeLoss::SoftLabel(Bins { first, step, count, sigma }) => {
                let outputs = count.try_into().expect("fewer than 2³¹ bins");
                Loss { threshold: 0.0, first, step, sigma, kind: 3, outputs }
            }
        })
    }
    /// The loss of one sample.
    fn value(&self, pred: impl Iterator<Item = f64> + Clone, age: f64) -> f64 {
        let error = pred.clone().next().unwrap_or(f64::NAN) - age;
        match *self {
            AgeLoss::L1 => error.abs(),
            AgeLoss::L2 => error * error,
            AgeLoss::Huber(d) if error.abs() <= d => 0.5 * error * error,
            AgeLoss::Huber(d) => d * (error.abs() - 0.5 * d),
            AgeLoss::SoftLabel(bins) => {
                let log_sum = log_sum_exp(pred.clone());
                let part = |(label, x): (f64, f64)| {
                    if label > 0.0 { label * (label.ln() - x + log_sum) } else { 0.0 }
                };
                bins.label(age).zip(pred).map(part).sum()
            }
        }
    }
    /// The derivative of one sample's loss by its output `i`.
    fn slope(&self, pred: impl Iterator<Item = f64> + Clone, age: f64, i: usize) -> f64 {
        let output = pred.clone().nth(i).unwrap_or(f64::NAN);
        let error = output - age;
        let sign = if error == 0.0 { 0.0 } else { error.signum() };
        match *self {
            AgeLoss::L1 => sign,
            AgeLoss::L2 => 2.0 * error,
            AgeLoss::Huber(d) => {
                if error.abs() <= d {
                    error
                } else {
                    d * sign
                }
            }
            AgeLoss::SoftLabel(bins) => {
                (output - log_sum_exp(pred)).exp() - bins.label(age).nth(i).unwrap_or(0.0)
            }
        }
    }
}

/// An age loss and its parts.
#[derive(Clone, Copy, Debug)]
pub struct AgeLosses {
    /// The mean over the batch, `[]`.
    pub loss: Tensor,
    /// The loss of each sample, `[B]`.
    pub per_sample: Tensor,
}

/// Records the loss of `pred: [B, outputs]` against `age: [B]`, in one unit.
#[track_caller]
pub fn age_loss(t: &mut Tape, pred: Tensor, age: Tensor, kind: AgeLoss) -> AgeLosses {
    let &[batch] = t.shape(age) else { panic!("age is [B], not {:?}", t.shape(age)) };
    t.expect_shape("pred", pred, &[batch, kind.outputs()]);
    let (loss, per_sample) = (t.temp(&[]), t.temp(&[batch]));
    t.push(Age { pred, age, loss, per_sample, batch, kind });
    AgeLosses { loss, per_sample }
}

#[derive(Clone, Copy, Debug)]
struct Age {
    pred: Tensor,
    age: Tensor,
    loss: Tensor,
    per_sample: Tensor,
    batch: usize,
    kind: AgeLoss,
}

impl Op for Age {
    fn io(&self) -> Io {
        Io::new([self.pred, self.age], [self.loss, self.per_sample])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dloss) = d.of(self.loss) else { return };
        let dpred = d.tape.activation_like(self.pred);
        d.tape.push(AgeGrad { of: *self, dloss, dpred });
        d.add(self.pred, dpred);
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { pred, age, loss, per_sample, batch, kind } = self;
        s.launch(
            Launch { kernel: "age_loss", grid: [batch.div_ceil(WARPS), 1, 1], block: 32 * WARPS, shared: 0 },
            &[s.f32(pred).into(), s.f32(age).into(), s.f32(per_sample).into(), batch.into(), kind.argument()],
        )?;
        s.launch(
            Launch { kernel: "age_loss_mean", grid: [1, 1, 1], block: 32 * WARPS, shared: 0 },
            &[s.f32(per_sample).into(), s.f32(loss).into(), batch.into()],
        )
    }
}

impl<F: Real> Define<F> for Age {
    fn define(&self, m: &Mem<F>) {
        let (pred, age) = (m.read(self.pred), m.read(self.age));
        let (loss, per_sample) = (m.write(self.loss), m.write(self.per_sample));
        let mut sum = 0.0;
        for (b, pred) in pred.chunks_exact(self.kind.outputs()).enumerate() {
            let value = self.kind.value(pred.iter().map(|p| p.f64()), age[b].f64());
            per_sample[b] = F::of(value);
            sum += value;
        }
        loss[0] = F::of(sum / age.len() as f64);
    }
}

#[derive(Debug)]
struct AgeGrad {
    of: Age,
    dloss: Tensor,
    dpred: Tensor,
}

impl Op for AgeGrad {
    fn io(&self) -> Io {
        Io::new([self.dloss, self.of.pred, self.of.age], [self.dpred])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let Age { pred, age, batch, kind, .. } = self.of;
        let grid = [batch.div_ceil(WARPS), 1, 1];
        s.launch(
            Launch { kernel: "age_loss_grad", grid, block: 32 * WARPS, shared: 0 },
            &[
                s.f32(self.dloss).into(),
                s.f32(pred).into(),
                s.f32(age).into(),
                s.bf16(self.dpred).into(),
                batch.into(),
                kind.argument(),
            ],
        )
    }
}

impl<F: Real> Define<F> for AgeGrad {
    fn define(&self, m: &Mem<F>) {
        let (pred, age, dloss) = (m.read(self.of.pred), m.read(self.of.age), m.read(self.dloss)[0].f64());
        let (dpred, kind) = (m.write(self.dpred), self.of.kind);
        for (i, dpred) in dpred.iter_mut().enumerate() {
            let (b, i) = (i / kind.outputs(), i % kind.outputs());
            let pred = pred[b * kind.outputs()..][..kind.outputs()].iter().map(|p| p.f64());
            *dpred = F::of(dloss / age.len() as f64 * kind.slope(pred, age[b].f64(), i));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn soft_labels_sum_to_one_and_centre_on_the_age() {
        let bins = Bins { first: 10.0, step: 1.0, count: 80, sigma: 1.0 };
        for age in [13.2, 47.0, 85.4] {
            let label: Vec<f64> = bins.label(age).collect();
            assert_relative_eq!(label.iter().sum::<f64>(), 1.0, epsilon = 1e-12);
            let mean: f64 = label.iter().enumerate().map(|(i, l)| l * bins.centre(i)).sum();
            assert_relative_eq!(mean, age, epsilon = 1e-2);
        }
    }

    #[test]
    fn a_perfect_distribution_has_no_loss_and_the_right_age() {
        let bins = Bins { first: 0.0, step: 2.0, count: 50, sigma: 3.0 };
        let logits: Vec<f64> = bins.label(41.0).map(|l| (l + 1e-300).ln()).collect();
        let kind = AgeLoss::SoftLabel(bins);
        assert!(kind.value(logits.iter().copied(), 41.0).abs() < 1e-12);
        assert_relative_eq!(bins.expectation(logits.iter().copied()), 41.0, epsilon = 1e-9);
    }
}
