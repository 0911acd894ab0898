//! What a trained model is asked for: ages and features of prepared volumes.
use super::Error;
use super::checkpoint::{Checkpoint, Head, Task};
use super::readout::{self, Readout};
use crate::data::Cache;
use crate::machine::cuda;
use crate::model::{Encoder, brain_age, brain_age::BrainAge};
use crate::ops::{AgeLoss, Patches};
use crate::program::{Device, Machine};
use crate::tape::{Tape, Tensor};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

/// Volumes that are computed together.
const BATCH: usize = 8;

/// An encoder over whole volumes.
struct Forward {
    machine: Box<dyn Machine<Real = f32>>,
    volume: Tensor,
    model: brain_age::Recorded,
    batch: usize,
}

impl Forward {
    fn new(
        checkpoint: &Checkpoint,
        device: &Device,
        encoder: Encoder,
        loss: AgeLoss,
        new: &[&str],
    ) -> Result<Self, Error> {
        let mut tape = Tape::default();
        let volume = encoder.volume(&mut tape, BATCH);
        let model = BrainAge { encoder, loss }.record(&mut tape, volume, false);
        let mut machine = device.machine(tape, &[model.features, model.pred])?;
        checkpoint.load_into(&mut *machine, new)?;
        let tokens = encoder.patches().tokens() as u32;
        machine.write_indices(model.ids, &(0..BATCH).flat_map(|_| 0..tokens).collect::<Vec<u32>>())?;
        Ok(Forward { machine, volume, model, batch: BATCH })
    }
    /// Computes `count` volumes, which `fill` writes by number, and calls `take` with each one's number and the
    /// machine's outputs for it: features and predictions.
    fn each(
        &mut self,
        count: usize,
        fill: impl Fn(usize, &mut [f32]),
        mut take: impl FnMut(&[f32], &[f32]),
    ) -> cuda::Result<()> {
        let mut volumes = vec![0.0; self.machine.tape().len(self.volume)];
        for from in (0..count).step_by(self.batch) {
            let to = (from + self.batch).min(count);
            let len = volumes.len() / self.batch;
            // The rest of a last batch keeps what was there before: its outputs are not read.
            volumes.chunks_exact_mut(len).zip(from..to).for_each(|(volume, i)| fill(i, volume));
            self.machine.write(self.volume, &volumes)?;
            self.machine.run()?;
            let features = self.machine.read(self.model.features)?;
            let pred = self.machine.read(self.model.pred)?;
            let (dim, outputs) = (features.len() / self.batch, pred.len() / self.batch);
            features
                .chunks_exact(dim)
                .zip(pred.chunks_exact(outputs))
                .take(to - from)
                .for_each(|(f, p)| take(f, p));
        }
        Ok(())
    }
}

/// A brain-age model, ready to predict.
pub struct AgePredictor {
    forward: Forward,
    head: Head,
    readout: Option<(Readout, Patches)>,
}

impl AgePredictor {
    /// From a fine-tuned model.
    ///
    /// # Errors
    /// A model that does not predict ages, or whose weights do not fit.
    pub fn new(checkpoint: &Checkpoint, device: &Device) -> Result<Self, Error> {
        let Task::BrainAge { encoder, head } = checkpoint.card.task else {
            let reason = "it is a pretrained model, which predicts no ages; fine-tune it first".to_owned();
            return Err(Error::Checkpoint { path: checkpoint.path.clone(), reason });
        };
        let problem = |reason| Error::Checkpoint { path: checkpoint.path.clone(), reason };
        let readout =
            |patches| Readout::of_arrays(&checkpoint.arrays, patches).map(|r| (r, patches)).map_err(problem);
        let readout = head.readout.then(|| readout(encoder.patches())).transpose()?;
        let forward = Forward::new(checkpoint, device, encoder, head.loss, &[])?;
        Ok(AgePredictor { forward, head, readout })
    }
    /// Ages in years of `count` volumes, which `fill` writes by number. The network sees a volume as it is and
    /// mirrored, and the mean of the two is taken: sides were exchanged at random in training too.
    ///
    /// # Errors
    /// What the device says.
    pub fn predict(
        &mut self,
        grid: [usize; 3],
        count: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> cuda::Result<Vec<f64>> {
        let read = |i: usize| {
            self.readout.as_ref().map_or(0.0, |(readout, patches)| {
                let mut volume = vec![0.0; patches.volume_len()];
                fill(i, &mut volume);
                readout.years(&readout::features(*patches, &volume))
            })
        };
        let said: Vec<f64> = (0..count).into_par_iter().map(read).collect();
        let mut years = Vec::with_capacity(2 * count);
        let both = |i: usize, volume: &mut [f32]| {
            fill(i / 2, volume);
            if i % 2 == 1 {
                mirror(volume, grid);
            }
        };
        self.forward.each(2 * count, both, |_, outputs| years.push(self.head.years(outputs)))?;
        Ok(said.iter().zip(years.as_chunks::<2>().0).map(|(said, [a, b])| said + 0.5 * (a + b)).collect())
    }
    /// Ages in years of rows of a cache.
    ///
    /// # Errors
    /// What the device says.
    pub fn predict_rows(&mut self, cache: &Cache, rows: &[usize]) -> cuda::Result<Vec<f64>> {
        self.predict(cache.grid(), rows.len(), |i, volume| cache.volume(rows[i]).convert_to_f32_slice(volume))
    }
}

/// Exchanges left and right of a volume `[x][y][z]`.
fn mirror(volume: &mut [f32], [nx, ny, nz]: [usize; 3]) {
    let slab = ny * nz;
    for x in 0..nx / 2 {
        let (front, back) = volume.split_at_mut((nx - 1 - x) * slab);
        front[x * slab..][..slab].swap_with_slice(&mut back[..slab]);
    }
}

/// An encoder, ready to give features: the mean of its patch tokens.
pub struct Embedder {
    forward: Forward,
}

impl Embedder {
    /// From a pretrained or a fine-tuned model.
    ///
    /// # Errors
    /// Weights that do not fit.
    pub fn new(checkpoint: &Checkpoint, device: &Device) -> Result<Self, Error> {
        let new = ["fc_norm.", "head."];
        let encoder = checkpoint.card.task.encoder();
        Ok(Embedder { forward: Forward::new(checkpoint, device, encoder, AgeLoss::L1, &new)? })
    }
    /// Features `[D]` of each of `count` volumes, which `fill` writes by number.
    ///
    /// # Errors
    /// What the device says.
    pub fn embed(&mut self, count: usize, fill: impl Fn(usize, &mut [f32])) -> cuda::Result<Vec<Vec<f32>>> {
        let mut all = Vec::with_capacity(count);
        self.forward.each(count, fill, |features, _| all.push(features.to_vec()))?;
        Ok(all)
    }
}
