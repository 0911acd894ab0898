//! What a pretrained model makes of a volume with patches removed.
use super::Error;
use super::checkpoint::{Checkpoint, Task};
use super::samples::Volumes;
use crate::image::BACKGROUND;
use crate::machine::cuda;
use crate::machine::philox::{Philox, Purpose, STREAM};
use crate::model::{Mae, mae, mae::Weight};
use crate::ops::{self, Patches, masking::TokenState};
use crate::program::{Device, Machine};
use crate::tape::{Tape, Tensor};

/// A masked autoencoder, ready to fill in what is removed.
pub struct Reconstructor {
    machine: Box<dyn Machine<Real = f32>>,
    streams: Tensor,
    /// What is shown, where there are several modalities.
    shown: Option<Tensor>,
    inputs: mae::Inputs,
    preds: Vec<Tensor>,
    mae: Mae,
}

/// A volume, what the model saw of it, and what it made of that; all `[x][y][z]`.
#[derive(Clone, Debug)]
pub struct Reconstruction {
    /// What the model saw: NaN in removed patches.
    pub masked: Vec<f32>,
    /// The original where it was seen, the prediction in removed patches; background stays background.
    pub volume: Vec<f32>,
    /// Mean squared error over the brain voxels of removed patches, of intensities with mean 0 and SD 1 over the
    /// brain; NaN where no brain was removed.
    pub mse: f64,
    /// Peak signal-to-noise ratio over the same voxels, dB: `10 log10(range² / mse)`, where range is that of the
    /// original's brain.
    pub psnr: f64,
}

impl Reconstructor {
    /// From a pretrained model.
    ///
    /// # Errors
    /// A model that reconstructs nothing, or whose weights do not fit.
    pub fn new(checkpoint: &Checkpoint, device: &Device) -> Result<Self, Error> {
        let Task::Pretraining(mae) = checkpoint.card.task.clone() else {
            let reason = "it predicts ages; only a pretrained model reconstructs".to_owned();
            return Err(Error::Checkpoint { path: checkpoint.path.clone(), reason });
        };
        let mut tape = Tape::default();
        let (volume, streams) = (mae.encoder.volume(&mut tape, 1), tape.indices(&[1, STREAM]));
        let kinds = mae.encoder.modalities.len();
        let shown = (kinds > 1).then(|| tape.indices(&[1, kinds]));
        let states = shown.map(|shown| ops::token_states(&mut tape, volume, shown, mae.encoder.patch, false));
        let inputs = mae.masked(&mut tape, volume, streams, states, Weight::Uniform);
        let preds = mae.record(&mut tape, &inputs).preds;
        let targets = inputs.targets.iter().flat_map(|target| [target.ids, target.weight]);
        let mut machine = device.machine(tape, &preds.iter().copied().chain(targets).collect::<Vec<_>>())?;
        checkpoint.load_into(&mut *machine, &[])?;
        inputs.fill_weights(&mut *machine)?;
        Ok(Reconstructor { machine, streams, shown, inputs, preds, mae })
    }

    /// The modalities it may be given.
    pub fn modalities(&self) -> &[String] {
        &self.mae.encoder.modalities
    }

    /// Whether each removed patch of modality number `modality` is given its true mean and SD: the model was trained
    /// without them (`norm_pix`), so nothing else could be shown, but the answer leaks into the picture.
    pub fn needs_true_statistics(&self, modality: usize) -> bool {
        self.mae.normalises(modality)
    }

    /// Removes patches of the volumes of a head as `seed` says for sample `number`, and fills them in.
    ///
    /// # Errors
    /// What the device says.
    pub fn reconstruct(
        &mut self,
        head: &Volumes,
        seed: u64,
        number: u32,
    ) -> cuda::Result<Vec<Option<Reconstruction>>> {
        let encoder = &self.mae.encoder;
        let one = Patches::new(1, encoder.grid, encoder.patch);
        let missing = vec![BACKGROUND; one.volume_len()];
        let volumes: Vec<&[f32]> = head.iter().map(|v| v.as_deref().unwrap_or(&missing)).collect();
        self.machine.write(self.inputs.volume, &volumes.concat())?;
        let stream = Philox::new(seed, Purpose::Mask, 0, number).start();
        self.machine.write_indices(self.streams, &stream)?;
        if let Some(shown) = self.shown {
            let state = |there: &Option<_>| match there {
                Some(_) => TokenState::Free as u32,
                None => TokenState::Absent as u32,
            };
            self.machine.write_indices(shown, &head.iter().map(state).collect::<Vec<u32>>())?;
        }
        self.machine.run()?;
        let made = |(m, volume): (usize, &Option<Vec<f32>>)| {
            volume.as_ref().map(|volume| self.fill_in(one, m, volume)).transpose()
        };
        head.iter().enumerate().map(made).collect()
    }

    /// What became of the volume of modality number `m`.
    fn fill_in(&self, patches: Patches, m: usize, volume: &[f32]) -> cuda::Result<Reconstruction> {
        let target = self.inputs.targets[m];
        let (ids, weights) = (self.machine.read_indices(target.ids)?, self.machine.read(target.weight)?);
        let pred = self.machine.read(self.preds[m])?;
        let (mut masked, mut made) = (volume.to_vec(), volume.to_vec());
        let mut original = vec![0.0; patches.values()];
        let (mut sum, mut count) = (0.0, 0_usize);
        for (i, _) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
            let id = ids[i] as usize % patches.tokens();
            patches.patchify(volume, id, &mut original);
            let mut patch = pred[i * patches.values()..][..patches.values()].to_vec();
            if self.mae.normalises(m) {
                undo_normalisation(&mut patch, &original);
            }
            for (made, &true_value) in patch.iter_mut().zip(&original) {
                if true_value > BACKGROUND {
                    sum += f64::from(*made - true_value).powi(2);
                    count += 1;
                } else {
                    *made = BACKGROUND;
                }
            }
            patches.unpatchify(&patch, id, &mut made);
            patches.unpatchify(&vec![f32::NAN; patches.values()], id, &mut masked);
        }
        let mse = sum / count as f64;
        let brain = || volume.iter().copied().filter(|&v| v > BACKGROUND);
        let range = brain().fold(f32::MIN, f32::max) - brain().fold(f32::MAX, f32::min);
        let psnr = 10.0 * (f64::from(range).powi(2) / mse).log10();
        Ok(Reconstruction { masked, volume: made, mse, psnr })
    }
}

/// Gives a predicted patch the mean and spread of the original one: the inverse of
/// [`normalise_patch`](crate::ops::normalise_patch), with its 1e-6 under the root.
fn undo_normalisation(patch: &mut [f32], original: &[f32]) {
    let n = original.len() as f64;
    let mean = original.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let var = original.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let spread = (var + 1e-6).sqrt();
    patch.iter_mut().for_each(|v| *v = (f64::from(*v) * spread + mean) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::normalise_patch;

    #[test]
    fn undoing_the_normalisation_gives_the_patch_back() {
        let original: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin() * 3.0 - 1.0).collect();
        let mut patch = original.clone();
        normalise_patch(&mut patch);
        undo_normalisation(&mut patch, &original);
        assert!(patch.iter().zip(&original).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}
