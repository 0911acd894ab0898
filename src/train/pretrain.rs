//! Pretraining: a masked autoencoder on the volumes of a cache.
use super::checkpoint::{Card, Progress, Task};
use super::config::{Pretrain, Weight};
use super::finetune::{holdout, learned, members};
use super::session::{Computer, Draw, Job, Session};
use super::{Error, variants::Variants};
use crate::data::{Assignment, Cache};
use crate::machine::cuda;
use crate::machine::philox::{Philox, Purpose, STREAM};
use crate::model::{Mae, init, mae};
use crate::ops::{self, reconstruction_loss::ReconstructionLoss};
use crate::program::{Device, Optimiser};
use crate::tape::{Tape, Tensor};
use std::path::Path;

/// Trains a masked autoencoder on `cache` in `folder`, on `device`: on all scans, or on those that the file at `given`
/// has in part "train".
///
/// # Errors
/// Settings that do not fit the cache, a loss that is not finite, files that cannot be written.
pub fn pretrain(
    cache: &Cache,
    settings: &Pretrain,
    given: Option<(&Assignment, &Path)>,
    device: &Device,
    folder: &Path,
    resume: bool,
) -> Result<Progress, Error> {
    settings.train.check().map_err(Error::Setup)?;
    let mae = settings.model.mae(cache.grid()).map_err(Error::Setup)?;
    let all: Vec<usize> = (0..cache.len()).collect();
    let (rows, watched, split) = match given {
        None => holdout(cache, &all, &settings.train, folder)?,
        Some((assignment, path)) if assignment.is_folds() => {
            let problem =
                "has folds; pretraining learns from one part, train: make it with --split holdout:F";
            return Err(Error::Setup(format!("{} {problem}", path.display())));
        }
        Some((assignment, path)) => {
            let split = assignment.split(&members(cache, &all), path)?;
            learned(cache, &split, &settings.train, false, folder)?
        }
    };
    let batch = settings.train.batch.min(rows.len());

    let mut tape = Tape::default();
    let variants = Variants::record(&mut tape, batch, cache.grid());
    let streams = tape.indices(&[batch, STREAM]);
    let masks = ops::random_masking(&mut tape, streams, mae.tokens(), mae.kept());
    let weight = match settings.weight {
        Weight::Uniform => tape.input(&[batch, mae.tokens() - mae.kept()]),
        Weight::Foreground => {
            ops::foreground_weight(&mut tape, variants.volume, masks.ids_removed, mae.encoder.patch)
        }
    };
    let inputs = mae::Inputs {
        volume: variants.volume,
        ids_keep: masks.ids_keep,
        ids_restore: masks.ids_restore,
        ids_predict: masks.ids_removed,
        weight,
    };
    let loss = mae.record(&mut tape, inputs).loss;
    let optimiser = Optimiser::record(&mut tape, loss.loss, settings.train.recipe(), |_| 1.0);
    let kept = [optimiser.kept(), vec![loss.loss, loss.per_patch, weight]].concat();
    let first = init::first_weights(&tape, mae.encoder.patches().grid(), settings.train.seed);
    let mut machine = device.machine(tape, &kept).map_err(|error| Error::of_machine(error, batch))?;
    machine.load(&first)?;
    if settings.weight == Weight::Uniform {
        machine.write(weight, &vec![1.0; batch * (mae.tokens() - mae.kept())])?;
    }

    let job = Pretraining { cache, settings, mae, variants, streams, weight, loss, rows: &rows, split };
    let (training, title) = (&settings.train, "pretraining");
    let (rows, watched) = (&rows[..], &watched[..]);
    Session { job: &job, cache, optimiser: &optimiser, training, batch, rows, watched, folder, title }
        .run(&mut *machine, resume)
}

struct Pretraining<'a> {
    cache: &'a Cache,
    settings: &'a Pretrain,
    mae: Mae,
    variants: Variants,
    /// Where the noise of masks comes from.
    streams: Tensor,
    weight: Tensor,
    loss: ReconstructionLoss,
    rows: &'a [usize],
    split: String,
}

impl Job for Pretraining<'_> {
    fn fill(&self, machine: &mut Computer, rows: &[usize], draw: Draw) -> cuda::Result<()> {
        let seed = self.settings.train.seed;
        let stream = |(i, &row): (usize, &usize)| {
            // A watched scan has the same mask in every epoch.
            let (step, sample) = match draw {
                Draw::Learn(step) => (step, i as u32),
                Draw::Watch => (u64::MAX, row as u32),
            };
            Philox::new(seed, Purpose::Mask, step, sample).start()
        };
        let streams: Vec<u32> = rows.iter().enumerate().flat_map(stream).collect();
        machine.write_indices(self.streams, &streams)?;
        self.variants.fill(machine, self.cache, rows, &self.settings.augment, seed, draw)
    }
    fn sample_losses(&self, machine: &Computer) -> cuda::Result<Vec<f64>> {
        let removed = self.mae.tokens() - self.mae.kept();
        let (errors, weights) = (machine.read(self.loss.per_patch)?, machine.read(self.weight)?);
        let mean = |(errors, weights): (&[f32], &[f32])| {
            let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
            let sum: f64 = errors.iter().zip(weights).map(|(&e, &w)| f64::from(e) * f64::from(w)).sum();
            if total > 0.0 { sum / total } else { sum }
        };
        Ok(errors.chunks(removed).zip(weights.chunks(removed)).map(mean).collect())
    }
    fn row_name(&self, row: usize) -> String {
        self.cache.scans()[row].scan.path.display().to_string()
    }
    fn card(&self, progress: Progress) -> Card {
        let task = Task::Pretraining(self.mae);
        Card::new(task, self.cache, subjects(self.cache, self.rows), &[], &self.split, progress)
    }
}

/// The subjects of some rows, each once, sorted.
pub(super) fn subjects(cache: &Cache, rows: &[usize]) -> Vec<String> {
    let mut subjects: Vec<String> = rows.iter().map(|&row| cache.scans()[row].scan.subject.clone()).collect();
    subjects.sort();
    subjects.dedup();
    subjects
}
