//! Pretraining: a masked autoencoder on the volumes of a cache.
use super::checkpoint::{Card, Progress, Task};
use super::config::{Patches, Pretrain, check_dropout};
use super::finetune::{given_parts, holdout};
use super::samples::{Dropout, Samples, Shown};
use super::session::{Computer, Draw, Job, Losses, Run, Session};
use super::{Error, variants::Variants};
use crate::data::{Assignment, Cache};
use crate::machine::cuda;
use crate::machine::philox::{Philox, Purpose, STREAM};
use crate::model::{Mae, init, mae};
use crate::ops;
use crate::program::Optimiser;
use crate::tape::{Tape, Tensor};
use std::path::Path;

/// What a masked autoencoder learns from.
#[derive(Clone, Copy, Debug)]
pub enum Learn<'a> {
    /// All samples of the cache.
    All,
    /// Those whose subject is in part "train" of a file, and where that was read.
    Given(&'a Assignment, &'a Path),
    /// These samples, by number; nothing is watched.
    Samples(&'a [usize]),
}

/// Trains a masked autoencoder on `cache`.
///
/// # Errors
/// Settings that do not fit the cache, a loss that is not finite, files that cannot be written.
pub fn pretrain(
    cache: &Cache,
    settings: &Pretrain,
    learn: Learn<'_>,
    run: Run<'_>,
) -> Result<Progress, Error> {
    let folder = run.folder;
    settings.train.check().map_err(Error::Setup)?;
    check_dropout(settings.modality_dropout).map_err(Error::Setup)?;
    let mae = settings.model.mae(cache.modalities(), cache.grid()).map_err(Error::Setup)?;
    let modalities = &mae.encoder.modalities;
    let shares = settings.shares(modalities).map_err(Error::Setup)?;
    let samples = Samples::of(cache, modalities).map_err(Error::Setup)?;
    let all: Vec<usize> = (0..samples.len()).collect();
    let (learned, watched, split) = match learn {
        Learn::All => holdout(&samples, &all, &settings.train, folder)?,
        Learn::Given(assignment, path) if assignment.is_folds() => {
            let problem =
                "has folds; pretraining learns from one part, train: make it with --split holdout:F";
            return Err(Error::Setup(format!("{} {problem}", path.display())));
        }
        Learn::Given(assignment, path) => {
            let split = assignment.split(&samples.members(&all), path)?;
            given_parts(&samples, &split, &settings.train, false, folder)?
        }
        Learn::Samples(numbers) => (numbers.to_vec(), Vec::new(), samples.hash(numbers)),
    };
    let batch = settings.train.batch.min(learned.len());

    let mut tape = Tape::default();
    let variants = Variants::record(&mut tape, batch, modalities, cache.grid());
    let streams = tape.indices(&[batch, STREAM]);
    let foreground = settings.patches == Patches::Foreground;
    let shown =
        (foreground || modalities.len() > 1).then(|| Shown::record(&mut tape, batch, modalities.len()));
    let (volume, edge) = (variants.volume, mae.encoder.patch);
    let states = shown.map(|s| ops::token_states(&mut tape, volume, s.states, edge, foreground));
    let inputs = mae.masked(&mut tape, volume, streams, states, settings.weight);
    let recorded = mae.record(&mut tape, &inputs);
    let losses: Vec<(Tensor, f64)> = recorded.losses.iter().map(|l| l.loss).zip(shares.clone()).collect();
    let optimiser = Optimiser::record(&mut tape, &losses, settings.train.recipe(), |_| 1.0);
    let read = recorded.losses.iter().zip(&inputs.targets);
    let read: Vec<Tensor> = read.flat_map(|(l, target)| [l.loss, l.per_patch, target.weight]).collect();
    let first = init::first_weights(&tape, &mae.encoder, settings.train.seed);
    let mut machine = run
        .device
        .machine(tape, &[optimiser.kept(), read].concat())
        .map_err(|error| Error::of_machine(error, batch, settings.train.recompute))?;
    machine.load(&first)?;
    inputs.fill_weights(&mut *machine)?;

    let job = Pretraining {
        samples,
        settings,
        mae,
        variants,
        streams,
        shown,
        inputs,
        recorded,
        shares,
        learned: &learned,
        split,
    };
    let (training, title) = (&settings.train, "pretraining");
    let (learned, watched) = (&learned[..], &watched[..]);
    Session { job: &job, optimiser: &optimiser, training, batch, learned, watched, run, title }
        .train(&mut *machine)
}

struct Pretraining<'a> {
    samples: Samples<'a>,
    settings: &'a Pretrain,
    mae: Mae,
    variants: Variants,
    /// Where the noise of masks comes from.
    streams: Tensor,
    /// Where samples differ in what is masked.
    shown: Option<Shown>,
    inputs: mae::Inputs,
    recorded: mae::Recorded,
    /// What each modality's loss counts for.
    shares: Vec<f64>,
    learned: &'a [usize],
    split: String,
}

impl Pretraining<'_> {
    /// The loss of each sample in modality number `m`; `None` where nothing of it counts.
    fn losses_in(&self, machine: &Computer, m: usize) -> cuda::Result<Vec<Option<f64>>> {
        let (per_patch, weight) = (self.recorded.losses[m].per_patch, self.inputs.targets[m].weight);
        let (errors, weights) = (machine.read(per_patch)?, machine.read(weight)?);
        let count = machine.tape().shape(weight)[1];
        let mean = |(errors, weights): (&[f32], &[f32])| {
            let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
            // A patch that does not count may hold anything.
            let counted = errors.iter().zip(weights).filter(|(_, w)| **w != 0.0);
            let sum: f64 = counted.map(|(&e, &w)| f64::from(e) * f64::from(w)).sum();
            (total > 0.0).then_some(sum / total)
        };
        Ok(errors.chunks(count).zip(weights.chunks(count)).map(mean).collect())
    }
}

impl Job for Pretraining<'_> {
    fn samples(&self) -> &Samples<'_> {
        &self.samples
    }
    fn fill(&self, machine: &mut Computer, numbers: &[usize], draw: Draw) -> cuda::Result<()> {
        let seed = self.settings.train.seed;
        let stream = |(i, &number): (usize, &usize)| {
            // A watched scan has the same mask in every epoch.
            let (step, sample) = match draw {
                Draw::Learn(step) => (step, i as u32),
                Draw::Watch => (u64::MAX, number as u32),
            };
            Philox::new(seed, Purpose::Mask, step, sample).start()
        };
        let streams: Vec<u32> = numbers.iter().enumerate().flat_map(stream).collect();
        machine.write_indices(self.streams, &streams)?;
        if let Some(shown) = self.shown {
            let dropout = Dropout { rate: self.settings.modality_dropout, seed };
            shown.fill(machine, &self.samples, numbers, &dropout, draw)?;
        }
        self.variants.fill(machine, &self.samples, numbers, &self.settings.augment, seed, draw)
    }
    /// Of a sample the weighted mean over the modalities that it has.
    fn losses(&self, machine: &Computer) -> cuda::Result<Losses> {
        let modalities = 0..self.shares.len();
        let each = modalities.map(|m| self.losses_in(machine, m)).collect::<cuda::Result<Vec<_>>>()?;
        let of_sample = |sample: usize| {
            let there = || each.iter().zip(&self.shares).filter_map(|(l, share)| Some((l[sample]?, share)));
            let total: f64 = there().map(|(_, share)| share).sum();
            let sum: f64 = there().map(|(loss, share)| loss * share).sum();
            if total > 0.0 { sum / total } else { 0.0 }
        };
        let samples = (0..each[0].len()).map(of_sample).collect();
        if each.len() == 1 {
            return Ok(Losses { samples, parts: Vec::new() });
        }
        let part = |(modality, losses): (&String, &Vec<Option<f64>>)| {
            let there: Vec<f64> = losses.iter().flatten().copied().collect();
            let mean = there.iter().sum::<f64>() / there.len() as f64;
            (!there.is_empty()).then(|| (format!("loss/{modality}"), mean))
        };
        let parts = self.mae.encoder.modalities.iter().zip(&each).filter_map(part).collect();
        Ok(Losses { samples, parts })
    }
    fn card(&self, progress: Progress) -> Card {
        let task = Task::Pretraining(self.mae.clone());
        let subjects = self.samples.subjects(self.learned);
        Card::new(task, self.samples.cache, subjects, &[], &self.split, progress)
    }
}
