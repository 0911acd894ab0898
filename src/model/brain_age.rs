//! Brain age: all patches through the encoder, the mean of the patch tokens, a new norm, a linear head.
use super::vit::{self, Encoder};
use crate::machine::cuda;
use crate::ops::{self, AgeLoss, age_loss::AgeLosses};
use crate::program::Machine;
use crate::tape::{Tape, Tensor};

/// A brain-age model.
#[derive(Clone, Debug)]
pub struct BrainAge {
    /// Sees every patch.
    pub encoder: Encoder,
    /// What the head is trained with; it decides how many outputs there are.
    pub loss: AgeLoss,
}

/// The tensors of a recorded brain-age model.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Input: every patch, `[B, L]` indices; those that are there come first ([`Encoder::all_patches`]).
    pub ids: Tensor,
    /// Input, where there are several modalities: how many rows count, class token included, `[B]` indices.
    pub length: Option<Tensor>,
    /// Input: the age of each, in the unit of the head, `[B]`.
    pub age: Tensor,
    /// Inputs: a factor per sample for each residual branch, `[B]`; empty when nothing is dropped.
    pub drops: Vec<Tensor>,
    /// Mean of the patch tokens, `[B, D]`.
    pub features: Tensor,
    /// The head's outputs, `[B, outputs]`.
    pub pred: Tensor,
    /// The loss.
    pub loss: AgeLosses,
}

impl Recorded {
    /// Shows a model with this encoder, for each sample, the modalities that are there: fills `ids` and `length`.
    ///
    /// # Errors
    /// What a device says.
    pub fn show<M: Machine + ?Sized>(
        &self,
        machine: &mut M,
        encoder: &Encoder,
        present: &[Vec<bool>],
    ) -> cuda::Result<()> {
        let all = present.iter().map(|present| encoder.all_patches(present));
        let (ids, lengths): (Vec<Vec<u32>>, Vec<u32>) = all.unzip();
        machine.write_indices(self.ids, &ids.concat())?;
        self.length.map_or(Ok(()), |length| machine.write_indices(length, &lengths))
    }
}

impl BrainAge {
    /// Records the model on `volume: [B, 1, M X, Y, Z]`, with drop path (as data) or without.
    pub fn record(&self, t: &mut Tape, volume: Tensor, drop_path: bool) -> Recorded {
        let batch = t.shape(volume)[0];
        let ids = t.indices(&[batch, self.encoder.patches().tokens()]);
        let age = t.input(&[batch]);
        let branches = if drop_path { 2 * self.encoder.shape.depth } else { 0 };
        let drops: Vec<Tensor> = (0..branches).map(|_| t.input(&[batch])).collect();
        let length = (self.encoder.modalities.len() > 1).then(|| t.indices(&[batch]));
        let visible = self.encoder.visible(t, ids, ids, length);
        let x = self.encoder.record(t, volume, &visible, &drops);
        let features = ops::mean_pool(t, x, self.encoder.prefix(), length);
        let x = vit::norm(t, "fc_norm", features);
        let pred = vit::head(t, "head", x, self.loss.outputs());
        let loss = ops::age_loss(t, pred, age, self.loss);
        Recorded { ids, length, age, drops, features, pred, loss }
    }
}
