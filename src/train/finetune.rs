//! Fine-tuning: brain age from a pretrained encoder, or from scratch; with a held-out part or by cross-validation.
use super::Error;
use super::checkpoint::{Card, Checkpoint, Head, Progress, Task};
use super::config::{Finetune, Training, check_dropout};
use super::infer::AgePredictor;
use super::readout::{self, Readout};
use super::samples::{Dropout, Samples};
use super::schedule::layer_scale;
use super::session::{Computer, Draw, Job, Losses, Run, Session};
use super::variants::Variants;
use crate::data::{Assignment, Cache, Split, TEST, TRAIN, VALIDATION};
use crate::error::OnFile;
use crate::machine::cuda;
use crate::machine::philox::{Philox, Purpose};
use crate::model::{Encoder, brain_age, brain_age::BrainAge, init};
use crate::program::{Arrays, Optimiser};
use crate::tape::Tape;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// The prediction for a scan that its model was not trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tested {
    /// The scan's row in the cache.
    pub row: usize,
    /// The prediction, years.
    pub years: f64,
    /// The fold it was held out in, from 1; `None` without cross-validation.
    pub fold: Option<usize>,
}

/// Who is held out to test on.
#[derive(Clone, Copy, Debug)]
pub enum HeldOut<'a> {
    /// `train.validation` of the subjects, who are watched too.
    Validation,
    /// Everybody once, in this many parts.
    Folds(usize),
    /// Whom a file says, and where it was read.
    Given(&'a Assignment, &'a Path),
}

/// Trains brain age on the scans of `cache` that have an age: once, or for folds in as many folders, each holding out
/// another part. Returns predictions for what was held out.
///
/// # Errors
/// Settings or a pretrained model that do not fit the cache, too few ages, a loss that is not finite, files that
/// cannot be written.
pub fn finetune(
    cache: &Cache,
    from: Option<&Checkpoint>,
    settings: &Finetune,
    held_out: HeldOut<'_>,
    run: Run<'_>,
) -> Result<Vec<Tested>, Error> {
    let folder = run.folder;
    settings.train.check().map_err(Error::Setup)?;
    check_dropout(settings.modality_dropout).map_err(Error::Setup)?;
    let encoder = match from {
        Some(checkpoint) => pretrained_encoder(checkpoint, cache)?,
        None => settings.model.mae(cache.modalities(), cache.grid()).map_err(Error::Setup)?.encoder,
    };
    let samples = &Samples::of(cache, &encoder.modalities).map_err(Error::Setup)?;
    let aged: Vec<usize> = (0..samples.len()).filter(|&n| samples.age(n).is_some()).collect();
    if aged.len() < 4 {
        let few = format!("{} scans of the cache have an age: brain age needs at least 4", aged.len());
        return Err(Error::Setup(few + " (an `age` column in participants.tsv or in the manifest)"));
    }
    let tuning = Tuning { samples, encoder, from, settings, run };
    let split = match held_out {
        HeldOut::Validation => {
            let (rows, held_out, split) = holdout(samples, &aged, &settings.train, folder)?;
            tuning.fit(&rows, &held_out, split, folder, "fine-tuning")?;
            return tuning.test(&held_out, None, folder);
        }
        HeldOut::Folds(folds) => Split::folds(&samples.members(&aged), folds, settings.train.seed)?,
        HeldOut::Given(assignment, path) => {
            let split = assignment.split(&samples.members(&aged), path)?;
            if !assignment.is_folds() {
                let (rows, watched, hash) = given_parts(samples, &split, &settings.train, true, folder)?;
                let tested = split.named(TEST).ok_or_else(|| no_part(path, TEST))?;
                tuning.fit(&rows, &watched, hash, folder, "fine-tuning")?;
                return tuning.test(&tested, None, folder);
            }
            split
        }
    };
    split.write(&folder.join("folds.tsv"))?;
    let folds = split.parts().len();
    // Everybody is tested, so nobody else is held out unless the last epoch has to be chosen by somebody.
    let validation = if settings.train.patience > 0 { settings.train.validation } else { 0.0 };
    let training = Training { validation, ..settings.train };
    let mut tested = Vec::new();
    for fold in 0..folds {
        let folder = folder.join(format!("fold-{}", fold + 1));
        std::fs::create_dir_all(&folder).on_file("create", &folder)?;
        let (rows, watched, hash) = holdout(samples, &split.other_rows(fold), &training, &folder)?;
        tuning.fit(
            &rows,
            &watched,
            format!("{} {hash}", split.hash()),
            &folder,
            &format!("fold {}", fold + 1),
        )?;
        tested.extend(tuning.test(&split.rows(fold), Some(fold + 1), &folder)?);
    }
    tested.sort_by_key(|t| t.row);
    Ok(tested)
}

/// The samples that a split without folds has to learn from and to watch, and its hash. Where no part is to be watched,
/// that is `training.validation` of the former, or nobody if only the choice of an epoch (`choice`) would need them.
pub(super) fn given_parts(
    samples: &Samples<'_>,
    split: &Split,
    training: &Training,
    choice: bool,
    folder: &Path,
) -> Result<(Vec<usize>, Vec<usize>, String), Error> {
    let rows = split.named(TRAIN).ok_or_else(|| Error::Setup(format!("the split has no part {TRAIN}")))?;
    if let Some(watched) = split.named(VALIDATION) {
        return Ok((rows, watched, split.hash()));
    }
    let validation = if choice && training.patience == 0 { 0.0 } else { training.validation };
    let (rows, watched, hash) = holdout(samples, &rows, &Training { validation, ..*training }, folder)?;
    Ok((rows, watched, format!("{} {hash}", split.hash())))
}

fn no_part(path: &Path, part: &str) -> Error {
    Error::Setup(format!("{}: no subject is in part {part}", path.display()))
}

/// Holds out `training.validation` of the subjects of samples `numbers`; writes the split. Returns those to learn from,
/// those held out, and the split's hash.
pub(super) fn holdout(
    samples: &Samples<'_>,
    numbers: &[usize],
    training: &Training,
    folder: &Path,
) -> Result<(Vec<usize>, Vec<usize>, String), Error> {
    if training.validation == 0.0 {
        return Ok((numbers.to_vec(), Vec::new(), String::new()));
    }
    let split = Split::holdout(&samples.members(numbers), training.validation, training.seed)?;
    split.write(&folder.join("split.tsv"))?;
    Ok((split.rows(0), split.rows(1), split.hash()))
}

/// What all models of a run have in common.
struct Tuning<'a> {
    samples: &'a Samples<'a>,
    encoder: Encoder,
    from: Option<&'a Checkpoint>,
    settings: &'a Finetune,
    run: Run<'a>,
}

impl Tuning<'_> {
    /// Predictions for samples `numbers` by the model in `folder`.
    fn test(&self, numbers: &[usize], fold: Option<usize>, folder: &Path) -> Result<Vec<Tested>, Error> {
        let mut model = AgePredictor::new(&Checkpoint::read(folder)?, self.run.device)?;
        let years = model.predict_samples(self.samples, numbers)?;
        let tested = |(&number, years)| Tested { row: self.samples.first(number), years, fold };
        Ok(numbers.iter().zip(years).map(tested).collect())
    }
    /// Trains a model on samples `learned` in `folder`, watching it on `watched`.
    fn fit(
        &self,
        learned: &[usize],
        watched: &[usize],
        split: String,
        folder: &Path,
        title: &str,
    ) -> Result<Progress, Error> {
        let Tuning { samples, encoder, settings, .. } = self;
        let targets = Targets::of(samples, encoder, learned, watched, settings.readout);
        let head = head(&targets, learned, settings)?;
        let batch = settings.train.batch.min(learned.len());
        let model = BrainAge { encoder: encoder.clone(), loss: head.loss };
        let mut tape = Tape::default();
        let variants = Variants::record(&mut tape, batch, &encoder.modalities, encoder.grid);
        let recorded = model.record(&mut tape, variants.volume, settings.drop_path > 0.0);
        let depth = encoder.shape.depth;
        let rate = |name: &str| layer_scale(depth, layer(name, depth), settings.layer_decay);
        let losses = [(recorded.loss.loss, 1.0)];
        let optimiser = Optimiser::record(&mut tape, &losses, settings.train.recipe(), rate);
        let kept = [optimiser.kept(), vec![recorded.loss.loss, recorded.loss.per_sample]].concat();
        let first = init::first_weights(&tape, encoder, settings.train.seed);
        let machine = self.run.device.machine(tape, &kept);
        let mut machine = machine.map_err(|e| Error::of_machine(e, batch, settings.train.recompute))?;
        machine.load(&first)?;
        if let Some(checkpoint) = self.from {
            checkpoint.load_into(&mut *machine, &["fc_norm.", "head."])?;
        }
        let pretrained_on = self.from.map_or(Vec::new(), |c| c.card.data.subjects.clone());
        let job = Finetuning {
            samples,
            settings,
            encoder,
            head,
            targets,
            variants,
            recorded,
            learned,
            split,
            pretrained_on,
        };
        let training = &settings.train;
        let run = Run { folder, ..self.run };
        Session { job: &job, optimiser: &optimiser, training, batch, learned, watched, run, title }
            .train(&mut *machine)
    }
}

fn pretrained_encoder(checkpoint: &Checkpoint, cache: &Cache) -> Result<Encoder, Error> {
    let problem = |reason: String| Error::Checkpoint { path: checkpoint.path.clone(), reason };
    let Task::Pretraining(mae) = &checkpoint.card.task else {
        return Err(problem("it predicts ages already; --from takes a pretrained model".into()));
    };
    if checkpoint.card.preprocessing != *cache.preprocessing() {
        let (theirs, ours) = (&checkpoint.card.preprocessing, cache.preprocessing());
        return Err(problem(format!("it was trained on scans prepared to {theirs}, the cache to {ours}")));
    }
    Ok(mae.encoder.clone())
}

/// What the network is trained on: each sample's age, less what the readout says of it.
struct Targets {
    ages: BTreeMap<usize, f64>,
    years: BTreeMap<usize, f64>,
    readout: Option<Readout>,
}

impl Targets {
    /// Targets of samples `learned`, which the readout is fitted to, and of `watched`. A training scan's target is what
    /// the readout leaves when that scan is left out of its fit: what it will leave of scans it has never seen.
    fn of(
        samples: &Samples<'_>,
        encoder: &Encoder,
        learned: &[usize],
        watched: &[usize],
        readout: bool,
    ) -> Targets {
        let numbers = || learned.iter().chain(watched);
        let age = |&n: &usize| (n, samples.age(n).expect("only scans with an age are used").into());
        let ages: BTreeMap<usize, f64> = numbers().map(age).collect();
        if !readout {
            return Targets { years: ages.clone(), ages, readout: None };
        }
        let features = |&n: &usize| readout::features(encoder, &samples.volumes_of(n));
        let features: Vec<Vec<f32>> = learned.par_iter().chain(watched).map(features).collect();
        let training: Vec<f64> = learned.iter().map(|n| ages[n]).collect();
        let readout::Fitted { readout, left_out } = readout::fit(&features[..learned.len()], &training);
        let watched_years = features[learned.len()..].iter().map(|f| readout.years(f));
        let said = left_out.into_iter().chain(watched_years);
        let years = numbers().zip(said).map(|(n, said)| (*n, ages[n] - said)).collect();
        Targets { ages, years, readout: Some(readout) }
    }
}

fn head(targets: &Targets, learned: &[usize], settings: &Finetune) -> Result<Head, Error> {
    let extremes = |of: &BTreeMap<usize, f64>| {
        [f64::min, f64::max]
            .map(|f| learned.iter().map(|n| of[n]).reduce(f).expect("there are training scans"))
    };
    let age_range = extremes(&targets.ages);
    if age_range[0] == age_range[1] {
        return Err(Error::Setup(format!("all training scans have the same age, {} years", age_range[0])));
    }
    let n = learned.len() as f64;
    let target_mean = learned.iter().map(|n| targets.years[n]).sum::<f64>() / n;
    let variance = learned.iter().map(|n| (targets.years[n] - target_mean).powi(2)).sum::<f64>() / n;
    let [least, greatest] = extremes(&targets.years);
    let loss = settings.loss.of_targets(least, greatest);
    let readout = targets.readout.is_some();
    Ok(Head { loss, readout, target_mean, target_sd: variance.sqrt().max(f64::MIN_POSITIVE), age_range })
}

/// The layer a parameter belongs to, for layer decay: 0 the embedding, k + 1 block k, depth + 1 the head.
fn layer(name: &str, depth: usize) -> usize {
    let block = name.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    match block {
        Some(k) => k + 1,
        None if name.starts_with("patch_embed") || name.starts_with("cls_token") => 0,
        None => depth + 1,
    }
}

struct Finetuning<'a> {
    samples: &'a Samples<'a>,
    settings: &'a Finetune,
    encoder: &'a Encoder,
    head: Head,
    targets: Targets,
    variants: Variants,
    recorded: brain_age::Recorded,
    learned: &'a [usize],
    split: String,
    pretrained_on: Vec<String>,
}

impl Job for Finetuning<'_> {
    fn samples(&self) -> &Samples<'_> {
        self.samples
    }
    fn fill(&self, machine: &mut Computer, numbers: &[usize], draw: Draw) -> cuda::Result<()> {
        let seed = self.settings.train.seed;
        self.variants.fill(machine, self.samples, numbers, &self.settings.augment, seed, draw)?;
        let dropout = Dropout { rate: self.settings.modality_dropout, seed };
        let shown = numbers.iter().enumerate().map(|(i, &number)| {
            let present = self.samples.present(number);
            let dropped = dropout.draw(&present, draw, i);
            present.iter().zip(dropped).map(|(&here, gone)| here && !gone).collect()
        });
        self.recorded.show(machine, self.encoder, &shown.collect::<Vec<Vec<bool>>>())?;
        let targets: Vec<f32> =
            numbers.iter().map(|n| self.head.target(self.targets.years[n]) as f32).collect();
        machine.write(self.recorded.age, &targets)?;
        let depth = self.encoder.shape.depth;
        for (branch, &drop) in self.recorded.drops.iter().enumerate() {
            // timm's rule: the rate rises linearly over the blocks; what is kept is scaled up.
            let rate = self.settings.drop_path as f32 * (branch / 2) as f32 / (depth - 1).max(1) as f32;
            let factor = |sample: usize| match draw {
                Draw::Watch => 1.0,
                Draw::Learn(step) => {
                    let at = (sample * 2 * depth + branch) as u32;
                    let kept = Philox::new(seed, Purpose::DropPath, step, at).uniform() >= rate;
                    if kept { 1.0 / (1.0 - rate) } else { 0.0 }
                }
            };
            let factors: Vec<f32> = (0..numbers.len()).map(factor).collect();
            machine.write(drop, &factors)?;
        }
        Ok(())
    }
    fn losses(&self, machine: &Computer) -> cuda::Result<Losses> {
        let samples = machine.read(self.recorded.loss.per_sample)?.into_iter().map(f64::from).collect();
        Ok(Losses { samples, parts: Vec::new() })
    }
    fn card(&self, progress: Progress) -> Card {
        let task = Task::BrainAge { encoder: self.encoder.clone(), head: self.head };
        let subjects = self.samples.subjects(self.learned);
        Card::new(task, self.samples.cache, subjects, &self.pretrained_on, &self.split, progress)
    }
    fn extras(&self) -> Arrays<f32> {
        self.targets.readout.as_ref().map_or(Arrays::default(), |readout| readout.arrays(self.encoder))
    }
}
