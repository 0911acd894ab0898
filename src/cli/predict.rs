//! `gyrus predict`: brain ages of new scans.
use super::{device::Device, inputs::Inputs, prepare::list, run_folder};
use crate::program;
use crate::{
    study::{predictions, predictions::Prediction},
    train::{Card, Checkpoint, checkpoint::Task, infer::AgePredictor, samples::Volumes},
};
use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Predict brain age, in years, of scans.
///
/// Scans are prepared as the model's training scans were. A model of several modalities is shown what there is of each
/// visit in a BIDS folder, a manifest or a cache, put together as gyrus prepare does; of a single file, that alone. Of a cross-validated run, the mean over the models of all
/// folds is predicted. Scans unlike the training scans, and ages beyond the training ages, carry a warning. Scans
/// that cannot be used are listed at the end and left out; the exit code is then 3.
///
/// Example: gyrus predict runs/age new-heads --out ages.csv
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A fine-tuned run, or its model.safetensors.
    pub model: PathBuf,
    /// NIfTI files, BIDS folders, folders of NIfTI files, .csv or .tsv manifests, or caches.
    #[arg(required = true, value_name = "FILE|DIR|CSV|CACHE")]
    pub inputs: Vec<PathBuf>,
    /// Table to write, .csv or .tsv; it is printed if this is left out.
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The brain mask of the one scan that is given. Within a BIDS folder, the mask in derivatives is found.
    #[arg(long, value_name = "FILE")]
    pub mask: Option<PathBuf>,
    /// The machine that computes.
    #[arg(long, value_name = "auto|cpu|cuda[:N]", default_value_t)]
    pub device: Device,
}

/// Runs the command.
///
/// # Errors
/// A model that cannot be read or predicts no ages; a cache prepared for another model; a table that cannot be
/// written.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let mut models = models(&args.model, &args.device.open()?)?;
    let card = models[0].card.clone();
    let mut table = Vec::new();
    let skipped = Inputs::find(&args.inputs, args.mask.as_deref(), &card)?.each(|inputs| {
        let heads: Vec<Volumes> = inputs.iter().map(|input| input.volumes.clone()).collect();
        let mut years = vec![0.0; inputs.len()];
        let share = 1.0 / models.len() as f64;
        for model in &mut models {
            let predicted = model.predictor.predict(&heads)?;
            years.iter_mut().zip(predicted).for_each(|(sum, y)| *sum += share * y);
        }
        for (input, predicted_age) in inputs.into_iter().zip(years) {
            let mut warnings = input.warnings;
            warnings.extend(outside(predicted_age, &models));
            let scan = input.scan.path.display().to_string();
            warnings.iter().for_each(|warning| eprintln!("warning: {scan}: {warning}"));
            warnings.extend(trained_on(&input.scan.subject, &models));
            table.push(Prediction {
                scan,
                subject: input.scan.subject,
                session: input.scan.session,
                age: input.scan.age.map(f64::from),
                predicted_age,
                fold: None,
                warnings: warnings.join("; "),
            });
        }
        Ok(())
    })?;
    let seen = table.iter().filter(|p| trained_on(&p.subject, &models).is_some()).count();
    if seen > 0 {
        eprintln!(
            "warning: subjects of these names were trained on, in {seen} of the scans: expect flattering ages"
        );
    }
    match &args.out {
        Some(path) => {
            predictions::write(path, &table)?;
            println!("{}: {} scans", path.display(), table.len());
        }
        None => print(&table),
    }
    if skipped.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    list(&skipped);
    Ok(ExitCode::from(3))
}

/// A model, ready to predict, and what it says of itself.
struct Model {
    card: Card,
    ages: [f64; 2],
    predictor: AgePredictor,
}

/// The model at `path`, or those of all folds of a cross-validated run.
fn models(path: &Path, device: &program::Device) -> Result<Vec<Model>, Box<dyn Error>> {
    let paths = run_folder::models(path);
    if paths[0] != path && !path.join("predictions.csv").exists() {
        let path = path.display();
        return Err(format!("{path}: its cross-validation is unfinished; finish it with --resume").into());
    }
    paths.iter().map(|path| model(path, device)).collect()
}

fn model(path: &Path, device: &program::Device) -> Result<Model, Box<dyn Error>> {
    let checkpoint = Checkpoint::read(path)?;
    let predictor = AgePredictor::new(&checkpoint, device)?;
    let Task::BrainAge { head, .. } = checkpoint.card.task else {
        unreachable!("a predictor is made of nothing else")
    };
    Ok(Model { card: checkpoint.card, ages: head.age_range, predictor })
}

/// Whether an age lies beyond the ages of training, in words.
fn outside(years: f64, models: &[Model]) -> Option<String> {
    let youngest = models.iter().map(|m| m.ages[0]).fold(f64::INFINITY, f64::min);
    let oldest = models.iter().map(|m| m.ages[1]).fold(f64::NEG_INFINITY, f64::max);
    let beyond = !(youngest..=oldest).contains(&years);
    beyond.then(|| {
        format!("predicted age {years:.1} is outside the training ages, {youngest:.1} to {oldest:.1}")
    })
}

/// Whether a subject of this name was trained on, in words.
fn trained_on(subject: &str, models: &[Model]) -> Option<String> {
    let of = models.len();
    let seen =
        models.iter().filter(|m| m.card.data.subjects.binary_search_by(|s| s.as_str().cmp(subject)).is_ok());
    match seen.count() {
        0 => None,
        _ if of == 1 => Some("a subject of this name was trained on".into()),
        n => Some(format!("a subject of this name was trained on in {n} of {of} folds")),
    }
}

fn print(table: &[Prediction]) {
    let width = table.iter().map(|p| p.scan.len()).max().unwrap_or(0).max(4);
    println!("{:width$}  {:>6}  {:>9}  warnings", "scan", "age", "predicted");
    for p in table {
        let age = p.age.map_or("n/a".to_owned(), |age| format!("{age:.1}"));
        println!("{:width$}  {age:>6}  {:>9.1}  {}", p.scan, p.predicted_age, p.warnings);
    }
}
