//! Fine-tuning: brain age from a pretrained encoder, or from scratch; with a held-out part or by cross-validation.
use super::Error;
use super::checkpoint::{Card, Checkpoint, Head, Progress, Task};
use super::config::{Finetune, Training};
use super::infer::AgePredictor;
use super::pretrain::subjects;
use super::readout::{self, Readout};
use super::schedule::layer_scale;
use super::session::{Computer, Draw, Job, Session};
use super::variants::Variants;
use crate::data::{Assignment, Cache, Member, Split, TEST, TRAIN, VALIDATION};
use crate::error::OnFile;
use crate::machine::cuda;
use crate::machine::philox::{Philox, Purpose};
use crate::model::{Encoder, brain_age, brain_age::BrainAge, init};
use crate::ops::Patches;
use crate::program::{Arrays, Device, Optimiser};
use crate::tape::Tape;
use half::slice::HalfFloatSliceExt;
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

/// Trains brain age on the scans of `cache` that have an age, in `folder`: once, or for folds in as many folders, each
/// holding out another part. Returns predictions for what was held out.
///
/// # Errors
/// Settings or a pretrained model that do not fit the cache, too few ages, a loss that is not finite, files that
/// cannot be written.
pub fn finetune(
    cache: &Cache,
    from: Option<&Checkpoint>,
    settings: &Finetune,
    held_out: HeldOut<'_>,
    device: &Device,
    folder: &Path,
    resume: bool,
) -> Result<Vec<Tested>, Error> {
    settings.train.check().map_err(Error::Setup)?;
    let aged: Vec<usize> = (0..cache.len()).filter(|&row| cache.scans()[row].scan.age.is_some()).collect();
    if aged.len() < 4 {
        let few = format!("{} scans of the cache have an age: brain age needs at least 4", aged.len());
        return Err(Error::Setup(few + " (an `age` column in participants.tsv or in the manifest)"));
    }
    let tuning = Tuning { cache, from, settings, device, resume };
    let split = match held_out {
        HeldOut::Validation => {
            let (rows, held_out, split) = holdout(cache, &aged, &settings.train, folder)?;
            tuning.fit(&rows, &held_out, split, folder, "fine-tuning")?;
            return tuning.test(&held_out, None, folder);
        }
        HeldOut::Folds(folds) => Split::folds(&members(cache, &aged), folds, settings.train.seed)?,
        HeldOut::Given(assignment, path) => {
            let split = assignment.split(&members(cache, &aged), path)?;
            if !assignment.is_folds() {
                let (rows, watched, hash) = learned(cache, &split, &settings.train, true, folder)?;
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
        let (rows, watched, hash) = holdout(cache, &split.other_rows(fold), &training, &folder)?;
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

/// The rows that a split without folds has to learn from and to watch, and its hash. Where no part is to be watched,
/// that is `training.validation` of the former, or nobody if only the choice of an epoch (`choice`) would need them.
pub(super) fn learned(
    cache: &Cache,
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
    let (rows, watched, hash) = holdout(cache, &rows, &Training { validation, ..*training }, folder)?;
    Ok((rows, watched, format!("{} {hash}", split.hash())))
}

fn no_part(path: &Path, part: &str) -> Error {
    Error::Setup(format!("{}: no subject is in part {part}", path.display()))
}

pub(super) fn members<'a>(cache: &'a Cache, rows: &[usize]) -> Vec<Member<'a>> {
    let member = |&row: &usize| {
        let scan = &cache.scans()[row].scan;
        Member { row, subject: &scan.subject, age: scan.age }
    };
    rows.iter().map(member).collect()
}

/// Holds out `training.validation` of the subjects of `rows`; writes the split. Returns the rows to learn from,
/// those held out, and the split's hash.
pub(super) fn holdout(
    cache: &Cache,
    rows: &[usize],
    training: &Training,
    folder: &Path,
) -> Result<(Vec<usize>, Vec<usize>, String), Error> {
    if training.validation == 0.0 {
        return Ok((rows.to_vec(), Vec::new(), String::new()));
    }
    let split = Split::holdout(&members(cache, rows), training.validation, training.seed)?;
    split.write(&folder.join("split.tsv"))?;
    Ok((split.rows(0), split.rows(1), split.hash()))
}

/// What all models of a run have in common.
struct Tuning<'a> {
    cache: &'a Cache,
    from: Option<&'a Checkpoint>,
    settings: &'a Finetune,
    device: &'a Device,
    resume: bool,
}

impl Tuning<'_> {
    /// Predictions for `rows` by the model in `folder`.
    fn test(&self, rows: &[usize], fold: Option<usize>, folder: &Path) -> Result<Vec<Tested>, Error> {
        let years =
            AgePredictor::new(&Checkpoint::read(folder)?, self.device)?.predict_rows(self.cache, rows)?;
        Ok(rows.iter().zip(years).map(|(&row, years)| Tested { row, years, fold }).collect())
    }
    /// Trains a model on `rows` in `folder`, watching it on `watched`.
    fn fit(
        &self,
        rows: &[usize],
        watched: &[usize],
        split: String,
        folder: &Path,
        title: &str,
    ) -> Result<Progress, Error> {
        let (cache, settings) = (self.cache, self.settings);
        let encoder = match self.from {
            Some(checkpoint) => pretrained_encoder(checkpoint, cache)?,
            None => settings.model.mae(cache.grid()).map_err(Error::Setup)?.encoder,
        };
        let targets = Targets::of(cache, encoder.patches(), rows, watched, settings.readout);
        let head = head(&targets, rows, settings)?;
        let batch = settings.train.batch.min(rows.len());
        let model = BrainAge { encoder, loss: head.loss };
        let mut tape = Tape::default();
        let variants = Variants::record(&mut tape, batch, cache.grid());
        let recorded = model.record(&mut tape, variants.volume, settings.drop_path > 0.0);
        let rate = |name: &str| {
            layer_scale(encoder.shape.depth, layer(name, encoder.shape.depth), settings.layer_decay)
        };
        let optimiser = Optimiser::record(&mut tape, recorded.loss.loss, settings.train.recipe(), rate);
        let kept = [optimiser.kept(), vec![recorded.loss.loss, recorded.loss.per_sample]].concat();
        let first = init::first_weights(&tape, encoder.patches().grid(), settings.train.seed);
        let mut machine = self.device.machine(tape, &kept).map_err(|e| Error::of_machine(e, batch))?;
        machine.load(&first)?;
        if let Some(checkpoint) = self.from {
            checkpoint.load_into(&mut *machine, &["fc_norm.", "head."])?;
        }
        let ids: Vec<u32> = (0..batch).flat_map(|_| 0..encoder.patches().tokens() as u32).collect();
        machine.write_indices(recorded.ids, &ids)?;
        let pretrained_on = self.from.map_or(Vec::new(), |c| c.card.data.subjects.clone());
        let job = Finetuning {
            cache,
            settings,
            encoder,
            head,
            targets,
            variants,
            recorded,
            rows,
            split,
            pretrained_on,
        };
        let training = &settings.train;
        Session { job: &job, cache, optimiser: &optimiser, training, batch, rows, watched, folder, title }
            .run(&mut *machine, self.resume)
    }
}

fn pretrained_encoder(checkpoint: &Checkpoint, cache: &Cache) -> Result<Encoder, Error> {
    let problem = |reason: String| Error::Checkpoint { path: checkpoint.path.clone(), reason };
    let Task::Pretraining(mae) = checkpoint.card.task else {
        return Err(problem("it predicts ages already; --from takes a pretrained model".into()));
    };
    if checkpoint.card.preprocessing != *cache.preprocessing() {
        let (theirs, ours) = (&checkpoint.card.preprocessing, cache.preprocessing());
        return Err(problem(format!("it was trained on scans prepared to {theirs}, the cache to {ours}")));
    }
    Ok(mae.encoder)
}

/// What the network is trained on: each scan's age, less what the readout says of it.
struct Targets {
    ages: BTreeMap<usize, f64>,
    years: BTreeMap<usize, f64>,
    readout: Option<Readout>,
}

impl Targets {
    /// Targets of `rows`, which the readout is fitted to, and of `watched`. A training scan's target is what the
    /// readout leaves when that scan is left out of its fit: what it will leave of scans it has never seen.
    fn of(cache: &Cache, patches: Patches, rows: &[usize], watched: &[usize], readout: bool) -> Targets {
        let age = |&row: &usize| {
            (row, cache.scans()[row].scan.age.expect("only scans with an age are used").into())
        };
        let ages: BTreeMap<usize, f64> = rows.iter().chain(watched).map(age).collect();
        if !readout {
            return Targets { years: ages.clone(), ages, readout: None };
        }
        let features = |&row: &usize| readout::features(patches, &cache.volume(row).to_f32_vec());
        let features: Vec<Vec<f32>> = rows.par_iter().chain(watched).map(features).collect();
        let training: Vec<f64> = rows.iter().map(|row| ages[row]).collect();
        let readout::Fitted { readout, left_out } = readout::fit(&features[..rows.len()], &training);
        let watched_years = features[rows.len()..].iter().map(|f| readout.years(f));
        let said = left_out.into_iter().chain(watched_years);
        let years =
            rows.iter().chain(watched).zip(said).map(|(row, said)| (*row, ages[row] - said)).collect();
        Targets { ages, years, readout: Some(readout) }
    }
}

fn head(targets: &Targets, rows: &[usize], settings: &Finetune) -> Result<Head, Error> {
    let extremes = |of: &BTreeMap<usize, f64>| {
        [f64::min, f64::max]
            .map(|f| rows.iter().map(|row| of[row]).reduce(f).expect("there are training scans"))
    };
    let age_range = extremes(&targets.ages);
    if age_range[0] == age_range[1] {
        return Err(Error::Setup(format!("all training scans have the same age, {} years", age_range[0])));
    }
    let n = rows.len() as f64;
    let target_mean = rows.iter().map(|row| targets.years[row]).sum::<f64>() / n;
    let variance = rows.iter().map(|row| (targets.years[row] - target_mean).powi(2)).sum::<f64>() / n;
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
    cache: &'a Cache,
    settings: &'a Finetune,
    encoder: Encoder,
    head: Head,
    targets: Targets,
    variants: Variants,
    recorded: brain_age::Recorded,
    rows: &'a [usize],
    split: String,
    pretrained_on: Vec<String>,
}

impl Job for Finetuning<'_> {
    fn fill(&self, machine: &mut Computer, rows: &[usize], draw: Draw) -> cuda::Result<()> {
        let seed = self.settings.train.seed;
        self.variants.fill(machine, self.cache, rows, &self.settings.augment, seed, draw)?;
        let targets: Vec<f32> =
            rows.iter().map(|row| self.head.target(self.targets.years[row]) as f32).collect();
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
            let factors: Vec<f32> = (0..rows.len()).map(factor).collect();
            machine.write(drop, &factors)?;
        }
        Ok(())
    }
    fn sample_losses(&self, machine: &Computer) -> cuda::Result<Vec<f64>> {
        Ok(machine.read(self.recorded.loss.per_sample)?.into_iter().map(f64::from).collect())
    }
    fn row_name(&self, row: usize) -> String {
        self.cache.scans()[row].scan.path.display().to_string()
    }
    fn card(&self, progress: Progress) -> Card {
        let task = Task::BrainAge { encoder: self.encoder, head: self.head };
        Card::new(
            task,
            self.cache,
            subjects(self.cache, self.rows),
            &self.pretrained_on,
            &self.split,
            progress,
        )
    }
    fn extras(&self) -> Arrays<f32> {
        let Some(readout) = &self.targets.readout else { return Arrays::default() };
        readout.arrays(self.encoder.patches())
    }
}
