//! Pretraining: a masked autoencoder on the volumes of a cache.
use super::checkpoint::{Card, Progress, Task};
use super::config::{Pretrain, Weight};
use super::session::{Computer, Draw, Job, Session};
use super::{Error, finetune::holdout};
use crate::data::{Augment, Cache, augment};
use crate::image::BACKGROUND;
use crate::machine::cuda;
use crate::machine::philox::{Philox, Purpose};
use crate::model::{Mae, init, mae};
use crate::ops::Patches;
use crate::program::{Device, Optimiser};
use crate::tape::Tape;
use rayon::prelude::*;
use std::path::Path;

/// Trains a masked autoencoder on `cache` in `folder`, on `device`.
///
/// # Errors
/// Settings that do not fit the cache, a loss that is not finite, files that cannot be written.
pub fn pretrain(
    cache: &Cache,
    settings: &Pretrain,
    device: &Device,
    folder: &Path,
    resume: bool,
) -> Result<Progress, Error> {
    settings.train.check().map_err(Error::Setup)?;
    let mae = settings.model.mae(cache.grid()).map_err(Error::Setup)?;
    let all: Vec<usize> = (0..cache.len()).collect();
    let (rows, watched, split) = holdout(cache, &all, &settings.train, folder)?;
    let batch = settings.train.batch.min(rows.len());

    let mut tape = Tape::default();
    let inputs = mae.record(&mut tape, batch, mae.tokens() - mae.kept());
    let optimiser = Optimiser::record(&mut tape, inputs.loss.loss, settings.train.recipe(), |_| 1.0);
    let kept = [optimiser.kept(), vec![inputs.loss.loss, inputs.loss.per_patch]].concat();
    let first = init::first_weights(&tape, mae.encoder.patches().grid(), settings.train.seed);
    let mut machine = device.machine(tape, &kept)?;
    machine.load(&first)?;

    let job = Pretraining { cache, settings, mae, inputs, rows: &rows, split };
    let (training, title) = (&settings.train, "pretraining");
    let (rows, watched) = (&rows[..], &watched[..]);
    Session { job: &job, optimiser: &optimiser, training, batch, rows, watched, folder, title }
        .run(&mut *machine, resume)
}

struct Pretraining<'a> {
    cache: &'a Cache,
    settings: &'a Pretrain,
    mae: Mae,
    inputs: mae::Recorded,
    rows: &'a [usize],
    split: String,
}

impl Job for Pretraining<'_> {
    fn fill(&self, machine: &mut Computer, rows: &[usize], draw: Draw) -> cuda::Result<()> {
        let (seed, mae) = (self.settings.train.seed, &self.mae);
        let volumes = batch_of_volumes(self.cache, rows, &self.settings.augment, seed, draw);
        machine.write(self.inputs.volume, &volumes)?;
        let masks: Vec<mae::Masking> = rows
            .iter()
            .enumerate()
            .map(|(i, &row)| {
                // A watched scan has the same mask in every epoch.
                let (step, sample) = match draw {
                    Draw::Learn(step) => (step, i as u32),
                    Draw::Watch => (u64::MAX, row as u32),
                };
                let mut random = Philox::new(seed, Purpose::Mask, step, sample);
                let noise: Vec<f64> = (0..mae.tokens()).map(|_| random.uniform().into()).collect();
                mae::random_masking(&noise, mae.kept())
            })
            .collect();
        let gather =
            |f: fn(&mae::Masking) -> &[u32]| masks.iter().flat_map(|m| f(m).to_vec()).collect::<Vec<u32>>();
        let removed = gather(|m| m.ids_removed());
        let weights = match self.settings.weight {
            Weight::Uniform => vec![1.0; removed.len()],
            Weight::Foreground => foreground(mae.encoder.patches(), &volumes, &removed),
        };
        machine.write_indices(self.inputs.ids_keep, &gather(|m| m.ids_keep()))?;
        machine.write_indices(self.inputs.ids_restore, &gather(|m| &m.ids_restore))?;
        machine.write_indices(self.inputs.ids_predict, &removed)?;
        machine.write(self.inputs.weight, &weights)
    }
    fn sample_losses(&self, machine: &Computer) -> cuda::Result<Vec<f64>> {
        let removed = self.mae.tokens() - self.mae.kept();
        let (errors, weights) =
            (machine.read(self.inputs.loss.per_patch)?, machine.read(self.inputs.weight)?);
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

/// A batch of volumes: changed at random to learn from, as they are to watch.
pub(super) fn batch_of_volumes(
    cache: &Cache,
    rows: &[usize],
    how: &Augment,
    seed: u64,
    draw: Draw,
) -> Vec<f32> {
    let none = Augment::none();
    let (how, step) = if let Draw::Learn(step) = draw { (how, step) } else { (&none, 0) };
    let (grid, spacing) = (cache.grid(), cache.preprocessing().nominal_spacing() as f32);
    let len = grid.iter().product::<usize>();
    let mut volumes = vec![0.0; len * rows.len()];
    volumes.par_chunks_mut(len).zip(rows).enumerate().for_each(|(i, (volume, &row))| {
        let mut random = Philox::new(seed, Purpose::Augment, step, i as u32);
        augment(cache.volume(row), grid, spacing, how, &mut random, volume);
    });
    volumes
}

/// The share of brain voxels in each of the patches `ids`, as many for each volume.
fn foreground(patches: Patches, volumes: &[f32], ids: &[u32]) -> Vec<f32> {
    let len = patches.volume_len();
    let per_volume = ids.len() / (volumes.len() / len);
    let share = |(i, &id): (usize, &u32)| {
        let volume = &volumes[i / per_volume * len..][..len];
        let lines = patches.lines(id as usize).map(|at| &volume[at..at + patches.edge]);
        let brain: usize = lines.map(|line| line.iter().filter(|&&v| v > BACKGROUND).count()).sum();
        brain as f32 / patches.values() as f32
    };
    ids.par_iter().enumerate().map(share).collect()
}
