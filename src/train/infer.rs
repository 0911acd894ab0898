//! What a trained model is asked for: ages and features of prepared volumes.
use super::Error;
use super::checkpoint::{Checkpoint, Head, Task};
use super::readout::{self, Readout};
use super::samples::{Samples, Volumes};
use crate::image::BACKGROUND;
use crate::machine::cuda;
use crate::model::{Encoder, brain_age, brain_age::BrainAge, init};
use crate::ops::AgeLoss;
use crate::program::{Device, Machine};
use crate::tape::{Tape, Tensor};
use rayon::prelude::*;

/// Heads that are computed together.
const BATCH: usize = 8;

/// An encoder over whole volumes.
struct Forward {
    machine: Box<dyn Machine<Real = f32>>,
    encoder: Encoder,
    volume: Tensor,
    model: brain_age::Recorded,
}

/// What a model makes of one head.
struct Seen {
    features: Vec<f32>,
    outputs: Vec<f32>,
}

impl Forward {
    /// Without weights yet.
    fn new(device: &Device, encoder: &Encoder, loss: AgeLoss) -> Result<Self, Error> {
        let mut tape = Tape::default();
        let volume = encoder.volume(&mut tape, BATCH);
        let model = BrainAge { encoder: encoder.clone(), loss }.record(&mut tape, volume, false);
        let machine = device.machine(tape, &[model.features, model.pred])?;
        Ok(Forward { machine, encoder: encoder.clone(), volume, model })
    }
    /// What the model makes of each of `heads`.
    fn see(&mut self, heads: &[Volumes]) -> cuda::Result<Vec<Seen>> {
        let mut seen = Vec::with_capacity(heads.len());
        let mut volumes = vec![BACKGROUND; self.machine.tape().len(self.volume)];
        let each = volumes.len() / BATCH / self.encoder.modalities.len();
        for heads in heads.chunks(BATCH) {
            // The rest of a last batch keeps what was there before: its outputs are not read.
            let all = heads.iter().flatten();
            for (to, volume) in volumes.chunks_exact_mut(each).zip(all) {
                match volume {
                    Some(volume) => to.copy_from_slice(volume),
                    None => to.fill(BACKGROUND),
                }
            }
            let here = |head: &Volumes| head.iter().map(Option::is_some).collect::<Vec<bool>>();
            let mut present: Vec<Vec<bool>> = heads.iter().map(here).collect();
            present.resize(BATCH, vec![true; self.encoder.modalities.len()]);
            self.model.show(&mut *self.machine, &self.encoder, &present)?;
            self.machine.write(self.volume, &volumes)?;
            self.machine.run()?;
            let features = self.machine.read(self.model.features)?;
            let pred = self.machine.read(self.model.pred)?;
            let [features, outputs] = [&features, &pred].map(|all| all.chunks_exact(all.len() / BATCH));
            let both = features.zip(outputs).take(heads.len());
            seen.extend(both.map(|(f, o)| Seen { features: f.to_vec(), outputs: o.to_vec() }));
        }
        Ok(seen)
    }
}

/// A brain-age model, ready to predict.
pub struct AgePredictor {
    forward: Forward,
    head: Head,
    readout: Option<Readout>,
}

impl AgePredictor {
    /// From a fine-tuned model.
    ///
    /// # Errors
    /// A model that does not predict ages, or whose weights do not fit.
    pub fn new(checkpoint: &Checkpoint, device: &Device) -> Result<Self, Error> {
        let Task::BrainAge { encoder, head } = &checkpoint.card.task else {
            let reason = "it is a pretrained model, which predicts no ages; fine-tune it first".to_owned();
            return Err(Error::Checkpoint { path: checkpoint.path.clone(), reason });
        };
        let problem = |reason| Error::Checkpoint { path: checkpoint.path.clone(), reason };
        let readout = || Readout::of_arrays(&checkpoint.arrays, encoder).map_err(problem);
        let readout = head.readout.then(readout).transpose()?;
        let mut forward = Forward::new(device, encoder, head.loss)?;
        checkpoint.load_into(&mut *forward.machine, &[])?;
        Ok(AgePredictor { forward, head: *head, readout })
    }
    /// The modalities it may be given, of which a head has one at least.
    pub fn modalities(&self) -> &[String] {
        &self.forward.encoder.modalities
    }
    /// Ages in years of `heads`. The network sees a head as it is and mirrored, and the mean of the two is taken: sides
    /// were exchanged at random in training too.
    ///
    /// # Errors
    /// What the device says.
    pub fn predict(&mut self, heads: &[Volumes]) -> cuda::Result<Vec<f64>> {
        let encoder = &self.forward.encoder;
        let read = |head: &Volumes| {
            self.readout.as_ref().map_or(0.0, |readout| readout.years(&readout::features(encoder, head)))
        };
        let said: Vec<f64> = heads.par_iter().map(read).collect();
        let mut mirrored = heads.to_vec();
        let grid = encoder.grid;
        mirrored.par_iter_mut().flatten().flatten().for_each(|volume| mirror(volume, grid));
        let [seen, other] = [self.forward.see(heads)?, self.forward.see(&mirrored)?];
        let years = |seen: &Seen| self.head.years(&seen.outputs);
        let mean = seen.iter().zip(&other).map(|(a, b)| 0.5 * (years(a) + years(b)));
        Ok(said.iter().zip(mean).map(|(said, mean)| said + mean).collect())
    }
    /// Ages in years of samples of a cache.
    ///
    /// # Errors
    /// What the device says.
    pub fn predict_samples(&mut self, samples: &Samples<'_>, numbers: &[usize]) -> cuda::Result<Vec<f64>> {
        let mut years = Vec::with_capacity(numbers.len());
        for numbers in numbers.chunks(BATCH) {
            let heads: Vec<Volumes> = numbers.iter().map(|&n| samples.volumes_of(n)).collect();
            years.extend(self.predict(&heads)?);
        }
        Ok(years)
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
        let encoder = checkpoint.card.task.encoder();
        let mut forward = Forward::new(device, encoder, AgeLoss::L1)?;
        checkpoint.load_into(&mut *forward.machine, &["fc_norm.", "head."])?;
        Ok(Embedder { forward })
    }
    /// With the weights that training with `seed` begins with.
    ///
    /// # Errors
    /// What the device says.
    pub fn untrained(encoder: &Encoder, seed: u64, device: &Device) -> Result<Self, Error> {
        let mut forward = Forward::new(device, encoder, AgeLoss::L1)?;
        let first = init::first_weights(forward.machine.tape(), encoder, seed);
        forward.machine.load(&first)?;
        Ok(Embedder { forward })
    }
    /// Features `[D]` of each of `heads`.
    ///
    /// # Errors
    /// What the device says.
    pub fn embed(&mut self, heads: &[Volumes]) -> cuda::Result<Vec<Vec<f32>>> {
        Ok(self.forward.see(heads)?.into_iter().map(|seen| seen.features).collect())
    }
}
