//! The masked autoencoder (He et al. 2022) on volumes, with the method names of facebookresearch/mae.
//!
//! Two differences save work and change no gradient: only the kept patches are embedded, and only the patches the
//! loss asks for are predicted.
use super::vit::{self, Encoder, Shape};
use crate::ops::{self, reconstruction_loss::ReconstructionLoss};
use crate::tape::{Tape, Tensor};
use serde::{Deserialize, Serialize};

/// A masked autoencoder.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mae {
    /// Sees the kept patches.
    pub encoder: Encoder,
    /// Predicts the removed ones.
    pub decoder: Shape,
    /// Share of patches that are removed.
    pub mask_ratio: f64,
    /// Whether patches are brought to mean 0 and variance 1 before they are compared.
    pub norm_pix: bool,
}

/// What the model is shown and asked for: filled by the host ([`Mae::inputs`]), or written by operations
/// ([`augment`](ops::augment()), [`random_masking`](ops::random_masking)).
#[derive(Clone, Copy, Debug)]
pub struct Inputs {
    /// Volumes, `[B, 1, X, Y, Z]`.
    pub volume: Tensor,
    /// The kept patches, `[B, K]` indices.
    pub ids_keep: Tensor,
    /// For each patch its place after shuffling, `[B, L]` indices.
    pub ids_restore: Tensor,
    /// The patches to predict, `[B, M]` indices.
    pub ids_predict: Tensor,
    /// What each predicted patch counts for in the loss, `[B, M]`.
    pub weight: Tensor,
}

/// The outputs of a recorded masked autoencoder.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    /// Predictions, `[B, M, patch³]`.
    pub pred: Tensor,
    /// The loss, `[]`, and its parts by patch.
    pub loss: ReconstructionLoss,
}

impl Mae {
    /// Patches in a volume, L.
    pub fn tokens(&self) -> usize {
        self.encoder.patches().tokens()
    }
    /// Patches kept, K: `L (1 - mask_ratio)`, rounded down.
    pub fn kept(&self) -> usize {
        (self.tokens() as f64 * (1.0 - self.mask_ratio)) as usize
    }
    /// Inputs that the host fills, of `batch` volumes, of which `predicted` patches each are predicted: the removed
    /// ones in training (L - K), all (L) to look at.
    pub fn inputs(&self, t: &mut Tape, batch: usize, predicted: usize) -> Inputs {
        Inputs {
            volume: self.encoder.volume(t, batch),
            ids_keep: t.indices(&[batch, self.kept()]),
            ids_restore: t.indices(&[batch, self.tokens()]),
            ids_predict: t.indices(&[batch, predicted]),
            weight: t.input(&[batch, predicted]),
        }
    }
    /// Records the model on `inputs`.
    pub fn record(&self, t: &mut Tape, inputs: Inputs) -> Recorded {
        let Inputs { volume, ids_keep, ids_restore, ids_predict, weight } = inputs;
        let latent = self.forward_encoder(t, volume, ids_keep);
        let pred = self.forward_decoder(t, latent, ids_restore, ids_predict);
        let loss = self.forward_loss(t, volume, pred, ids_predict, weight);
        Recorded { pred, loss }
    }
    fn forward_encoder(&self, t: &mut Tape, volume: Tensor, ids_keep: Tensor) -> Tensor {
        let x = self.encoder.record(t, volume, ids_keep, &[]);
        vit::norm(t, "norm", x)
    }
    fn forward_decoder(
        &self,
        t: &mut Tape,
        latent: Tensor,
        ids_restore: Tensor,
        ids_predict: Tensor,
    ) -> Tensor {
        let (dim, prefix) = (self.decoder.dim, self.encoder.prefix());
        let x = vit::linear(t, "decoder_embed", latent, dim);
        let mask_token = t.param("mask_token", &[1, 1, dim]);
        let pos = t.frozen("decoder_pos_embed", &[1, prefix + self.tokens(), dim]);
        let x = ops::restore_tokens(t, x, mask_token, pos, ids_restore);
        let x = vit::blocks(t, "decoder_blocks", x, self.decoder, &[]);
        let x = ops::gather_tokens(t, x, ids_predict, prefix);
        let x = vit::norm(t, "decoder_norm", x);
        vit::linear(t, "decoder_pred", x, self.encoder.patches().values())
    }
    fn forward_loss(
        &self,
        t: &mut Tape,
        volume: Tensor,
        pred: Tensor,
        ids: Tensor,
        weight: Tensor,
    ) -> ReconstructionLoss {
        ops::reconstruction_loss(t, pred, volume, ids, weight, self.encoder.patch, self.norm_pix)
    }
}

/// Which patches of one volume are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masking {
    /// All patches, the kept ones first.
    pub ids_shuffle: Vec<u32>,
    /// The inverse permutation: for each patch its place in `ids_shuffle`.
    pub ids_restore: Vec<u32>,
    /// How many are kept.
    pub kept: usize,
}

impl Masking {
    /// The kept patches.
    pub fn ids_keep(&self) -> &[u32] {
        &self.ids_shuffle[..self.kept]
    }
    /// The removed patches.
    pub fn ids_removed(&self) -> &[u32] {
        &self.ids_shuffle[self.kept..]
    }
}

/// Keeps the `kept` patches with the smallest noise: what the operation of this name does with noise of its own.
pub fn random_masking(noise: &[f64], kept: usize) -> Masking {
    let mut ids_shuffle: Vec<u32> = (0..noise.len() as u32).collect();
    ids_shuffle.sort_by(|&a, &b| noise[a as usize].total_cmp(&noise[b as usize]));
    let mut ids_restore = vec![0; noise.len()];
    for (place, &id) in ids_shuffle.iter().enumerate() {
        ids_restore[id as usize] = place as u32;
    }
    Masking { ids_shuffle, ids_restore, kept }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::philox::{Philox, Purpose, STREAM};
    use crate::program::Cpu;

    #[test]
    fn masking_keeps_the_smallest_noise_and_restores() {
        let m = random_masking(&[0.7, 0.1, 0.9, 0.3], 2);
        assert_eq!((m.ids_keep(), m.ids_removed()), (&[1, 3][..], &[0, 2][..]));
        assert_eq!(m.ids_restore, [2, 0, 3, 1]);
    }

    /// Of the same noise: the uniform numbers of a stream.
    #[test]
    fn the_operation_makes_the_same_masks() {
        for (tokens, kept) in [(1, 0), (150, 37), (150, 150), (1200, 300)] {
            let mut t = Tape::default();
            let streams = t.indices(&[2, STREAM]);
            let masks = ops::random_masking(&mut t, streams, tokens, kept);
            let mut cpu = Cpu::<f32>::new(t, &[masks.ids_keep, masks.ids_removed, masks.ids_restore]);
            let random = [5, 6].map(|sample| Philox::new(3, Purpose::Mask, 1 << 40, sample));
            cpu.write_indices(streams, random.clone().map(|r| r.start()).as_flattened());
            cpu.run();
            for (sample, mut random) in random.into_iter().enumerate() {
                let noise: Vec<f64> = (0..tokens).map(|_| random.uniform().into()).collect();
                let expected = random_masking(&noise, kept);
                let of = |t| {
                    let all = cpu.read_indices(t);
                    &all[sample * all.len() / 2..(sample + 1) * all.len() / 2]
                };
                assert_eq!(of(masks.ids_keep), expected.ids_keep());
                assert_eq!(of(masks.ids_removed), expected.ids_removed());
                assert_eq!(of(masks.ids_restore), expected.ids_restore);
            }
        }
    }
}
