//! `loss = sum w[b, i] mean((pred[b, i] - target[b, i])²) / sum w` over listed patches; the target is the patch
//! itself, or, with `norm_pix`, `(t - mean(t)) / sqrt(var(t) + 1e-6)` with the unbiased variance (He et al.,
//! "Masked autoencoders are scalable vision learners", 2022, and its published code).
//!
//! The target is computed from the volume where it is needed and never stored. With all weights zero the loss is 0.
use super::{Patches, assert_vectors, lanes};
use crate::machine::cuda::{Arg, Launch, Result, Stream};
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
    let (loss, total, per_patch) = (t.temp(&[]), t.temp(&[]), t.temp(&[batch, count]));
    t.push(Reconstruction {
        pred,
        volume,
        ids,
        weight,
        loss,
        total,
        per_patch,
        patches,
        batch,
        count,
        norm_pix,
    });
    ReconstructionLoss { loss, per_patch }
}

#[derive(Clone, Copy, Debug)]
struct Reconstruction {
    pred: Tensor,
    volume: Tensor,
    ids: Tensor,
    weight: Tensor,
    loss: Tensor,
    total: Tensor, // sum w, []
    per_patch: Tensor,
    patches: Patches,
    batch: usize,
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
    /// The kernel for these patches, of the two that there are. A thread takes four vectors of 8 values, blocks walk over
    /// the patches, as many as run at a time: 1024 threads a multiprocessor. The target is kept in shared memory, in bf16.
    fn kernel(&self, [lines, voxels]: [&'static str; 2], processors: usize) -> Launch {
        const MOST_THREADS: usize = 1024;
        let Patches { channels, edge, .. } = self.patches;
        let values = self.patches.values();
        assert_vectors("reconstruction_loss", values);
        let block = values.div_ceil(4 * 8).next_multiple_of(32);
        assert!(block <= MOST_THREADS, "on a GPU a patch has at most {} values", MOST_THREADS * 4 * 8);
        Launch {
            kernel: if channels == 1 && edge.is_multiple_of(8) { lines } else { voxels },
            grid: [(self.batch * self.count).min(processors * MOST_THREADS / block), 1, 1],
            block,
            shared: 2 * values,
        }
    }
    /// What kernels are told of the patches.
    fn geometry(&self) -> [Arg; 8] {
        let Patches { channels, volume: [x, y, z], edge } = self.patches;
        let patches = self.batch * self.count;
        [patches, self.count, channels, x, y, z, edge, usize::from(self.norm_pix)].map(Arg::from)
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
        Io::new([self.pred, self.volume, self.ids, self.weight], [self.loss, self.total, self.per_patch])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dloss) = d.of(self.loss) else { return };
        let dpred = d.tape.activation_like(self.pred);
        d.tape.push(ReconstructionGrad { of: *self, dloss, dpred });
        d.add(self.pred, dpred);
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { pred, volume, ids, weight, loss, total, per_patch, .. } = self;
        let kernels = ["reconstruction_loss_lines", "reconstruction_loss_voxels"];
        let launch = self.kernel(kernels, s.card().processors);
        let blocks = launch.grid[0];
        let parts = s.workspace(blocks * 2 * size_of::<f32>());
        let tensors = [
            s.bf16(pred).into(),
            s.bf16(volume).into(),
            s.indices(ids).into(),
            s.f32(weight).into(),
            s.f32(per_patch).into(),
            parts.into(),
        ];
        s.launch(launch, &tensors.into_iter().chain(self.geometry()).collect::<Vec<_>>())?;
        s.launch(
            Launch { kernel: "reconstruction_loss_mean", grid: [1, 1, 1], block: 256, shared: 0 },
            &[parts.into(), s.f32(loss).into(), s.f32(total).into(), blocks.into()],
        )
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
        m.write(self.total)[0] = total;
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
        let Reconstruction { pred, volume, ids, weight, total, .. } = self.of;
        Io::new([self.dloss, total, pred, volume, ids, weight], [self.dpred])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let Reconstruction { pred, volume, ids, weight, total, .. } = self.of;
        let kernels = ["reconstruction_loss_grad_lines", "reconstruction_loss_grad_voxels"];
        let launch = self.of.kernel(kernels, s.card().processors);
        let tensors = [
            s.f32(self.dloss).into(),
            s.f32(total).into(),
            s.bf16(pred).into(),
            s.bf16(volume).into(),
            s.indices(ids).into(),
            s.f32(weight).into(),
            s.bf16(self.dpred).into(),
        ];
        s.launch(launch, &tensors.into_iter().chain(self.of.geometry()).collect::<Vec<_>>())
    }
}

impl<F: Real> Define<F> for ReconstructionGrad {
    fn define(&self, m: &Mem<F>) {
        let Reconstruction { pred, volume, ids, weight, total, patches, .. } = self.of;
        let (pred, volume, ids, weight) = (m.read(pred), m.read(volume), m.read_indices(ids), m.read(weight));
        let (dloss, dpred, values) = (m.read(self.dloss)[0], m.write(self.dpred), patches.values());
        let total = m.read(total)[0];
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
