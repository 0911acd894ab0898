//! Fine-tuning: brain age from a pretrained encoder, or from scratch; with a held-out part or by cross-validation.
use super::Error;
use super::checkpoint::{Card, Checkpoint, Head, Progress, Provenance, Task};
use super::config::{Finetune, Training};
use super::infer::AgePredictor;
use super::optimise::Optimiser;
use super::pretrain::{fill_volumes, subjects};
use super::schedule::layer_scale;
use super::session::{Draw, Job, Session};
use crate::data::{Cache, Member, Split};
use crate::error::OnFile;
use crate::machine::philox::{Philox, Purpose};
use crate::model::{Encoder, brain_age, brain_age::BrainAge, init};
use crate::program::Cpu;
use crate::tape::Tape;
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

/// Trains brain age on the scans of `cache` that have an age, in `folder`: once, holding out `train.validation` of
/// the subjects, or with `folds` in as many folders, each holding out another part. Returns predictions for what
/// was held out.
///
/// # Errors
/// Settings or a pretrained model that do not fit the cache, too few ages, a loss that is not finite, files that
/// cannot be written.
pub fn finetune(
    cache: &Cache,
    from: Option<&Checkpoint>,
    settings: &Finetune,
    folds: Option<usize>,
    folder: &Path,
    resume: bool,
) -> Result<Vec<Tested>, Error> {
    settings.train.check().map_err(Error::Setup)?;
    let aged: Vec<usize> = (0..cache.len()).filter(|&row| cache.scans()[row].scan.age.is_some()).collect();
    if aged.len() < 4 {
        let few = format!("{} scans of the cache have an age: brain age needs at least 4", aged.len());
        return Err(Error::Setup(few + " (an `age` column in participants.tsv or in the manifest)"));
    }
    let one = |rows: &[usize], tested: Option<&[usize]>, fold: Option<usize>, folder: &Path| {
        let (rows, watched, split) = holdout(cache, rows, &settings.train, folder)?;
        let title = fold.map_or("fine-tuning".to_owned(), |f| format!("fold {f}"));
        fit(cache, from, settings, &rows, &watched, split, folder, &title, resume)?;
        let tested = tested.unwrap_or(&watched);
        let mut model = AgePredictor::new(&Checkpoint::read(folder)?)?;
        let years = model.predict_rows(cache, tested);
        Ok::<_, Error>(
            tested.iter().zip(years).map(|(&row, years)| Tested { row, years, fold }).collect::<Vec<_>>(),
        )
    };
    let Some(folds) = folds else { return one(&aged, None, None, folder) };
    let split = Split::folds(&members(cache, &aged), folds, settings.train.seed)?;
    split.write(&folder.join("folds.tsv"))?;
    let mut tested = Vec::new();
    for fold in 0..folds {
        let folder = folder.join(format!("fold-{}", fold + 1));
        std::fs::create_dir_all(&folder).on_file("create", &folder)?;
        tested.extend(one(&split.other_rows(fold), Some(&split.rows(fold)), Some(fold + 1), &folder)?);
    }
    tested.sort_by_key(|t| t.row);
    Ok(tested)
}

fn members<'a>(cache: &'a Cache, rows: &[usize]) -> Vec<Member<'a>> {
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

#[expect(clippy::too_many_arguments, reason = "one run, said once")]
fn fit(
    cache: &Cache,
    from: Option<&Checkpoint>,
    settings: &Finetune,
    rows: &[usize],
    watched: &[usize],
    split: String,
    folder: &Path,
    title: &str,
    resume: bool,
) -> Result<Progress, Error> {
    let encoder = match from {
        Some(checkpoint) => pretrained_encoder(checkpoint, cache)?,
        None => settings.model.mae(cache.grid()).map_err(Error::Setup)?.encoder,
    };
    let ages: Vec<f64> = rows.iter().filter_map(|&row| cache.scans()[row].scan.age).map(f64::from).collect();
    let head = head(&ages, settings)?;
    let batch = settings.train.batch.min(rows.len());
    let model = BrainAge { encoder, loss: head.loss };
    let mut tape = Tape::default();
    let inputs = model.record(&mut tape, batch, settings.drop_path > 0.0);
    let rate =
        |name: &str| layer_scale(encoder.shape.depth, layer(name, encoder.shape.depth), settings.layer_decay);
    let optimiser = Optimiser::record(&mut tape, inputs.loss.loss, settings.train.recipe(), rate);
    let kept = [optimiser.kept(), vec![inputs.loss.loss, inputs.loss.per_sample]].concat();
    let first = init::first_weights(&tape, encoder.patches().grid(), settings.train.seed);
    let mut cpu = Cpu::new(tape, &kept);
    cpu.load(&first);
    if let Some(checkpoint) = from {
        checkpoint.load_into(&mut cpu, &["fc_norm.", "head."])?;
    }
    let ids: Vec<u32> = (0..batch).flat_map(|_| 0..encoder.patches().tokens() as u32).collect();
    cpu.write_indices(inputs.ids, &ids);
    let pretrained_on = from.map_or(Vec::new(), |c| c.card.data.subjects.clone());
    let job = Finetuning { cache, settings, encoder, head, inputs, rows, split, pretrained_on };
    let training = &settings.train;
    Session { job: &job, optimiser: &optimiser, training, batch, rows, watched, folder, title }
        .run(&mut cpu, resume)
}

fn pretrained_encoder(checkpoint: &Checkpoint, cache: &Cache) -> Result<Encoder, Error> {
    let problem = |reason: String| Error::Checkpoint { path: checkpoint.path.clone(), reason };
    let Task::Pretraining(mae) = checkpoint.card.task else {
        return Err(problem("it predicts ages already; --from takes a pretrained model".into()));
    };
    if checkpoint.card.preprocessing != *cache.preprocessing() {
        let [theirs, ours] = [&checkpoint.card.preprocessing, cache.preprocessing()]
            .map(|p| serde_json::to_string(p).expect("settings are plain data"));
        return Err(problem(format!("it was trained on scans prepared by {theirs}, the cache by {ours}")));
    }
    Ok(mae.encoder)
}

fn head(ages: &[f64], settings: &Finetune) -> Result<Head, Error> {
    let n = ages.len() as f64;
    let age_mean = ages.iter().sum::<f64>() / n;
    let age_sd = (ages.iter().map(|a| (a - age_mean).powi(2)).sum::<f64>() / n).sqrt();
    if age_sd == 0.0 {
        return Err(Error::Setup(format!("all training scans have the same age, {age_mean} years")));
    }
    let [youngest, oldest] = [f64::min, f64::max].map(|f| ages.iter().copied().reduce(f).unwrap_or(age_mean));
    let loss = settings.loss.of_ages(youngest, oldest);
    Ok(Head { loss, age_mean, age_sd, age_range: [youngest, oldest] })
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
    inputs: brain_age::Recorded,
    rows: &'a [usize],
    split: String,
    pretrained_on: Vec<String>,
}

impl Job for Finetuning<'_> {
    fn fill(&self, cpu: &mut Cpu<f32>, rows: &[usize], draw: Draw) {
        let seed = self.settings.train.seed;
        fill_volumes(cpu.input(self.inputs.volume), self.cache, rows, &self.settings.augment, seed, draw);
        let age = |&row: &usize| self.cache.scans()[row].scan.age.expect("only scans with an age are used");
        let targets: Vec<f32> = rows.iter().map(|row| self.head.target(age(row).into()) as f32).collect();
        cpu.write(self.inputs.age, &targets);
        let depth = self.encoder.shape.depth;
        for (branch, &drop) in self.inputs.drops.iter().enumerate() {
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
            cpu.write(drop, &factors);
        }
    }
    fn sample_losses(&self, cpu: &Cpu<f32>) -> Vec<f64> {
        cpu.read(self.inputs.loss.per_sample).iter().map(|&l| l.into()).collect()
    }
    fn row_name(&self, row: usize) -> String {
        self.cache.scans()[row].scan.path.display().to_string()
    }
    fn card(&self, progress: Progress) -> Card {
        Card {
            task: Task::BrainAge { encoder: self.encoder, head: self.head },
            preprocessing: self.cache.preprocessing().clone(),
            fingerprint: self.cache.fingerprint().clone(),
            data: Provenance {
                cache: self.cache.hash().to_owned(),
                split: self.split.clone(),
                subjects: subjects(self.cache, self.rows),
                pretrained_on: self.pretrained_on.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            progress,
        }
    }
}
