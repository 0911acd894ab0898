//! The masked autoencoder (He et al. 2022) on volumes, with the method names of facebookresearch/mae.
//!
//! Three differences save work and change no gradient: only the kept patches are embedded, only the patches the loss asks
//! for are predicted, and the decoder sees tokens in shuffled order, since attention knows none.
//!
//! Several modalities of a head share places, encoder and decoder. Patches are removed from all of them together; a
//! modality that is missing has no tokens, so sequences differ in length (as in MultiMAE, Bachmann et al. 2022).
use super::vit::{self, Encoder, Shape, Visible};
use crate::image::is_quantitative;
use crate::machine::{Real, cuda};
use crate::ops::{self, reconstruction_loss::ReconstructionLoss};
use crate::program::Machine;
use crate::tape::{Role, Tape, Tensor};
use serde::{Deserialize, Serialize};

/// A masked autoencoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mae {
    /// Sees the kept patches.
    pub encoder: Encoder,
    /// Predicts the removed ones.
    pub decoder: Shape,
    /// Share of patches that are removed.
    pub mask_ratio: f64,
    /// Whether patches are brought to mean 0 and variance 1 before they are compared. Those of PET never are: a patch of
    /// it is so smooth that only its noise would be left.
    pub norm_pix: bool,
}

/// What the model is shown and asked for: filled by the host ([`Mae::inputs`]), or written by operations
/// ([`Mae::masked`]).
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Volumes, `[B, 1, M X, Y, Z]`.
    pub volume: Tensor,
    /// The kept patches.
    pub visible: Visible,
    /// All patches, the kept ones first, `[B, L]` indices.
    pub ids_shuffle: Tensor,
    /// How many rows of the decoder's sequence count, class token included, `[B]` indices; `None` for all.
    pub length: Option<Tensor>,
    /// The patches to predict, of each modality.
    pub targets: Vec<Target>,
}

/// The patches of a modality that are to be predicted.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Which, `[B, P]` indices.
    pub ids: Tensor,
    /// Where they stand in `ids_shuffle`, `[B, P]` indices; `None` if they are all that follow the kept ones.
    pub places: Option<Tensor>,
    /// What each counts for in the loss, `[B, P]`.
    pub weight: Tensor,
}

/// What removed patches count for in the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// The share of brain voxels: background patches count nothing.
    Foreground,
    /// All the same.
    Uniform,
}

/// The outputs of a recorded masked autoencoder, of each modality.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Predictions, `[B, P, patch³]`.
    pub preds: Vec<Tensor>,
    /// The loss, `[]`, and its parts by patch.
    pub losses: Vec<ReconstructionLoss>,
}

impl Inputs {
    /// Lets all patches count the same whose weights no operation writes.
    ///
    /// # Errors
    /// What a device says.
    pub fn fill_weights<M: Machine + ?Sized>(&self, machine: &mut M) -> cuda::Result<()> {
        for weight in self.targets.iter().map(|target| target.weight) {
            if machine.tape().info(weight).role == Role::Input {
                let ones = vec![M::Real::ONE; machine.tape().len(weight)];
                machine.write(weight, &ones)?;
            }
        }
        Ok(())
    }
}

impl Mae {
    /// Patches in the volumes of a head, L.
    pub fn tokens(&self) -> usize {
        self.encoder.patches().tokens()
    }
    /// Patches kept, K: `L (1 - mask_ratio)`, rounded down.
    pub fn kept(&self) -> usize {
        (self.tokens() as f64 * (1.0 - self.mask_ratio)) as usize
    }
    /// Inputs that the host fills, for `batch` volumes of one modality. All removed patches are predicted.
    #[track_caller]
    pub fn inputs(&self, t: &mut Tape, batch: usize) -> Inputs {
        assert_eq!(self.encoder.modalities.len(), 1, "the host masks one modality");
        let (tokens, kept) = (self.tokens(), self.kept());
        let volume = self.encoder.volume(t, batch);
        let (ids_keep, ids_shuffle) = (t.indices(&[batch, kept]), t.indices(&[batch, tokens]));
        let ids = t.indices(&[batch, tokens - kept]);
        Inputs {
            volume,
            visible: self.encoder.visible(t, ids_keep, ids_shuffle, None),
            ids_shuffle,
            length: None,
            targets: vec![Target { ids, places: None, weight: t.input(&[batch, tokens - kept]) }],
        }
    }
    /// Records random masks of `volume`, drawn from `streams: [B, 6]`. `states: [B, L]` say what may become of patches
    /// ([`TokenState`](crate::ops::masking::TokenState)); several modalities need them.
    /// [`Inputs::fill_weights`] has to be called once on a machine that is made of this.
    pub fn masked(
        &self,
        t: &mut Tape,
        volume: Tensor,
        streams: Tensor,
        states: Option<Tensor>,
        weight: Weight,
    ) -> Inputs {
        let (prefix, edge) = (self.encoder.prefix(), self.encoder.patch);
        let masks = ops::random_masking(t, streams, states, prefix, self.tokens(), self.kept());
        let foreground = |t: &mut Tape, ids, counts| match (weight, counts) {
            (Weight::Foreground, counts) => ops::foreground_weight(t, volume, ids, counts, edge),
            (Weight::Uniform, Some(counts)) => counts,
            (Weight::Uniform, None) => {
                let shape = t.shape(ids).to_vec();
                t.input(&shape)
            }
        };
        let targets = match masks.lengths {
            None => {
                let ids = masks.ids_removed;
                vec![Target { ids, places: None, weight: foreground(t, ids, None) }]
            }
            Some(lengths) => {
                let lengths = [lengths.visible, lengths.total];
                let of_modality = |modality| {
                    let removed = ops::removed_of_modality(t, masks.ids_shuffle, lengths, prefix, modality);
                    let weight = foreground(t, removed.ids, Some(removed.weight));
                    Target { ids: removed.ids, places: Some(removed.places), weight }
                };
                self.encoder.numbered().map(of_modality).collect()
            }
        };
        let visible = masks.lengths.map(|l| l.visible);
        Inputs {
            volume,
            visible: self.encoder.visible(t, masks.ids_keep, masks.ids_shuffle, visible),
            ids_shuffle: masks.ids_shuffle,
            length: masks.lengths.map(|l| l.total),
            targets,
        }
    }
    /// Records the model on `inputs`.
    pub fn record(&self, t: &mut Tape, inputs: &Inputs) -> Recorded {
        let latent = self.forward_encoder(t, inputs);
        let preds = self.forward_decoder(t, latent, inputs);
        let losses = self.forward_loss(t, &preds, inputs);
        Recorded { preds, losses }
    }
    /// Whether patches of modality number `modality` are normalised before they are compared.
    pub fn normalises(&self, modality: usize) -> bool {
        self.norm_pix && !is_quantitative(&self.encoder.modalities[modality])
    }
    fn forward_encoder(&self, t: &mut Tape, inputs: &Inputs) -> Tensor {
        let x = self.encoder.record(t, inputs.volume, &inputs.visible, &[]);
        vit::norm(t, "norm", x)
    }
    /// A modality's mask token tells the decoder which modality is asked for.
    fn forward_decoder(&self, t: &mut Tape, latent: Tensor, inputs: &Inputs) -> Vec<Tensor> {
        let (dim, prefix) = (self.decoder.dim, self.encoder.prefix());
        let x = vit::linear(t, "decoder_embed", latent, dim);
        let mask_token = t.param("mask_token", &[self.encoder.modalities.len(), 1, dim]);
        let pos = t.frozen("decoder_pos_embed", &[1, prefix + self.tokens(), dim]);
        let x = ops::append_mask_tokens(t, x, mask_token, pos, inputs.ids_shuffle, inputs.visible.length);
        let x = vit::blocks(t, "decoder_blocks", x, self.decoder, inputs.length, &[]);
        let pick = |target: &Target| match target.places {
            Some(places) => ops::gather_tokens(t, x, places, prefix),
            None => ops::last_tokens(t, x, prefix + self.kept()),
        };
        let picked: Vec<Tensor> = inputs.targets.iter().map(pick).collect();
        let normed = vit::norm_each(t, "decoder_norm", &picked);
        let values = self.encoder.patches().values();
        let head = |(x, modality)| {
            let name = self.encoder.part_of("decoder_pred", modality);
            vit::linear(t, &name, x, values)
        };
        normed.into_iter().zip(self.encoder.numbered()).map(head).collect()
    }
    fn forward_loss(&self, t: &mut Tape, preds: &[Tensor], inputs: &Inputs) -> Vec<ReconstructionLoss> {
        let loss = |(modality, (&pred, target)): (usize, (&Tensor, &Target))| {
            let (patch, normalise) = (self.encoder.patch, self.normalises(modality));
            ops::reconstruction_loss(t, pred, inputs.volume, target.ids, target.weight, patch, normalise)
        };
        preds.iter().zip(&inputs.targets).enumerate().map(loss).collect()
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
            let masks = ops::random_masking(&mut t, streams, None, 0, tokens, kept);
            let mut cpu = Cpu::<f32>::new(t, &[masks.ids_keep, masks.ids_removed, masks.ids_shuffle]);
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
                assert_eq!(of(masks.ids_shuffle), expected.ids_shuffle);
            }
        }
    }
}
