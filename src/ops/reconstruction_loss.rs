//! `loss = sum w[b, i] mean((pred[b, i] - target[b, i])²) / sum w` over listed patches; the target is the patch
//! itself, or, with `norm_pix`, `(t - mean(t)) / sqrt(var(t) + 1e-6)` with the unbiased variance (He et al.,
//! "Masked autoencoders are scalable vision learners", 2022, and its published code).
//!
//! The target is computed from the volume where it is needed and never stored. With all weights zero the loss is 0.
use super::{Patches, lanes};
use crate::machine::{Mem, Real, scratch};
use crate::tape::{Adjoint, Define, Dtype, Io, Op, Tape, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

const EPS: f64 = 1e-6;

/// A reconstruction's loss: the mean, and its parts.
#[derive(Clone, Copy, Debug)]
pub struct ReconstructionLoss {
    /// The weighted mean, `[]`.
    pub loss: Tensor,
    /// The mean squared error of each listed patch, `[B, M]`.
    pub per_patch: Tensor,
}

/// Records the loss of predictions `pred: [B, M, edge³ C]` for patches `ids: [B, M]` of `volume: [B, C, X, Y, Z]`,
/// weighted by `weight: [B, M]`.
#[track_caller]
pub fn reconstruction_loss(
    t: &mut Tape,
    pred: Tensor,
    volume: Tensor,
    ids: Tensor,
    weight: Tensor,
    edge: usize,
    norm_pix: bool,
) -> ReconstructionLoss {
    let patches = Patches::of(t, volume, edge);
    let &[batch, count] = t.shape(ids) else { panic!("ids are [B, M], not {:?}", t.shape(ids)) };
    t.expect_shape("pred", pred, &[batch, count, patches.values()]);
    t.expect_shape("weight", weight, &[batch, count]);
    assert_eq!(t.info(ids).dtype, Dtype::Index);
    let (loss, per_patch) = (t.temp(&[]), t.temp(&[batch, count]));
    t.push(Reconstruction { pred, volume, ids, weight, loss, per_patch, patches, count, norm_pix });
    ReconstructionLoss { loss, per_patch }
}

#[derive(Clone, Copy, Debug)]
struct Reconstruction {
    pred: Tensor,
    volume: Tensor,
    ids: Tensor,
    weight: Tensor,
    loss: Tensor,
    per_patch: Tensor,
    patches: Patches,
    count: usize,
    norm_pix: bool,
}

impl Reconstruction {
    /// Writes the target of listed patch `i`.
    fn target<F: Real>(&self, volume: &[F], ids: &[u32], i: usize, target: &mut [F]) {
        let len = self.patches.volume_len();
        self.patches.patchify(&volume[i / self.count * len..][..len], ids[i] as usize, target);
        if self.norm_pix {
            normalise_patch(target);
        }
    }
}

/// `(t - mean) / sqrt(var + 1e-6)`, unbiased variance: the target of a patch under `norm_pix`.
#[multiversion(targets = "simd")]
pub fn normalise_patch<F: Real>(patch: &mut [F]) {
    let n = patch.len();
    let mean = lanes([patch], |[t]| t) / F::of(n as f64);
    let var = lanes([patch], |[t]| (t - mean) * (t - mean)) / F::of(n as f64 - 1.0);
    let scale = F::ONE / (var + F::of(EPS)).sqrt();
    patch.iter_mut().for_each(|t| *t = (*t - mean) * scale);
}

#[multiversion(targets = "simd")]
fn mean_squared_error<F: Real>(pred: &[F], target: &[F]) -> F {
    lanes([pred, target], |[p, t]| (p - t) * (p - t)) / F::of(pred.len() as f64)
}

impl Op for Reconstruction {
    fn io(&self) -> Io {
        Io::new([self.pred, self.volume, self.ids, self.weight], [self.loss, self.per_patch])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dloss) = d.of(self.loss) else { return };
        let dpred = d.tape.like(self.pred);
        d.tape.push(ReconstructionGrad { of: *self, dloss, dpred });
        d.add(self.pred, dpred);
    }
}

impl<F: Real> Define<F> for Reconstruction {
    fn define(&self, m: &Mem<F>) {
        let (pred, volume, ids) = (m.read(self.pred), m.read(self.volume), m.read_indices(self.ids));
        let (weight, loss, per_patch) = (m.read(self.weight), m.write(self.loss), m.write(self.per_patch));
        let values = self.patches.values();
        per_patch.par_iter_mut().zip(pred.par_chunks(values)).enumerate().for_each(|(i, (error, pred))| {
            *error = scratch(values, |target| {
                self.target(volume, ids, i, target);
                mean_squared_error(pred, target)
            });
        });
        let total = lanes([weight], |[w]| w);
        let sum = lanes([weight, per_patch], |[w, e]| w * e);
        loss[0] = if total == F::ZERO { F::ZERO } else { sum / total };
    }
}

/// `dpred = dloss w / sum w · 2 (pred - target) / values`.
#[derive(Debug)]
struct ReconstructionGrad {
    of: Reconstruction,
    dloss: Tensor,
    dpred: Tensor,
}

impl Op for ReconstructionGrad {
    fn io(&self) -> Io {
        let Reconstruction { pred, volume, ids, weight, .. } = self.of;
        Io::new([self.dloss, pred, volume, ids, weight], [self.dpred])
    }
}

impl<F: Real> Define<F> for ReconstructionGrad {
    fn define(&self, m: &Mem<F>) {
        let Reconstruction { pred, volume, ids, weight, patches, .. } = self.of;
        let (pred, volume, ids, weight) = (m.read(pred), m.read(volume), m.read_indices(ids), m.read(weight));
        let (dloss, dpred, values) = (m.read(self.dloss)[0], m.write(self.dpred), patches.values());
        let total = lanes([weight], |[w]| w);
        let unit = if total == F::ZERO { F::ZERO } else { dloss * F::of(2.0 / values as f64) / total };
        dpred.par_chunks_mut(values).zip(pred.par_chunks(values)).enumerate().for_each(
            |(i, (dpred, pred))| {
                self.of.target(volume, ids, i, dpred);
                let scale = unit * weight[i];
                dpred.iter_mut().zip(pred).for_each(|(d, pred)| *d = scale * (*pred - *d));
            },
        );
    }
}
