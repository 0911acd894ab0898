//! `gyrus finetune`: brain age from a pretrained encoder, or from scratch.
use super::run_folder::{self, Options};
use crate::data::Cache;
use crate::study::{age_metrics::Report, predictions, predictions::Prediction};
use crate::train::{Checkpoint, Run, config::Finetune, finetune, finetune::HeldOut, finetune::Tested};
use std::{error::Error, path::PathBuf, process::ExitCode};

/// Fine-tune a pretrained model to predict age, in years.
///
/// Uses the scans of the cache that have an age. With --folds, every subject is held out once, by a model that has
/// not been trained on it; with --split, whom that file says; without, train.validation of the subjects are. Predictions
/// for held-out scans go to RUN/predictions.csv, which gyrus evaluate reads. All settings and their defaults: gyrus finetune --defaults.
///
/// Example: gyrus finetune cache --from runs/mae --folds 5 --out runs/age
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The prepared scans (gyrus prepare).
    #[arg(required_unless_present = "defaults")]
    pub cache: Option<PathBuf>,
    /// The pretrained run or model to begin with, or "scratch".
    #[arg(long, value_name = "RUN|scratch", required_unless_present = "defaults")]
    pub from: Option<PathBuf>,
    /// Cross-validate in this many parts, disjoint by subject and alike in age.
    #[arg(long, value_name = "K", conflicts_with = "split")]
    pub folds: Option<usize>,
    /// The run.
    #[command(flatten)]
    pub run: Options,
}

/// The bootstrap's seed: fixed, so that a table always has the same intervals.
const SEED: u64 = 0;

/// Runs the command.
///
/// # Errors
/// A cache or a model that cannot be read or do not fit, settings that do not fit, a loss that is not finite, files
/// that cannot be written.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let defaults = Finetune::default();
    let (Some(cache), Some(from), Some(out)) = (&args.cache, &args.from, &args.run.out) else {
        print!("{}", toml::to_string(&defaults)?);
        return Ok(ExitCode::SUCCESS);
    };
    let cache = Cache::open(cache)?;
    let from = (from.as_os_str() != "scratch").then(|| Checkpoint::read(from)).transpose()?;
    let device = args.run.device.open()?;
    let settings = run_folder::open(out, &args.run, &defaults)?;
    let run = Run { device: &device, folder: out, resume: args.run.resume, shown: true };
    let given = run_folder::given_split(out)?;
    let held_out = match (&given, args.folds) {
        (Some((assignment, path)), _) => HeldOut::Given(assignment, path),
        (None, Some(folds)) => HeldOut::Folds(folds),
        (None, None) => HeldOut::Validation,
    };
    let tested = finetune::finetune(&cache, from.as_ref(), &settings, held_out, run)?;
    if tested.is_empty() {
        println!("{}: trained on all scans; nothing was held out to test on", out.display());
        return Ok(ExitCode::SUCCESS);
    }
    let table: Vec<Prediction> = tested.iter().map(|t| prediction(&cache, t)).collect();
    let path = out.join("predictions.csv");
    predictions::write(&path, &table)?;
    // Training is done and the table is written: too few people to measure is no failure.
    match Report::new(&predictions::rows(&table), None, SEED) {
        Ok(report) => println!("{}\n{report}", path.display()),
        Err(why) => println!("{}: not measured: {why}", path.display()),
    }
    if let Some(seen) = from.map(|f| seen_in_pretraining(&table, &f)).filter(|&n| n > 0) {
        println!(
            "{seen} of the tested scans are of subjects whose scans, without their ages, were pretrained on."
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn prediction(cache: &Cache, tested: &Tested) -> Prediction {
    let row = &cache.scans()[tested.row];
    Prediction {
        scan: row.scan.path.display().to_string(),
        subject: row.scan.subject.clone(),
        session: row.scan.session.clone(),
        age: row.scan.age.map(f64::from),
        predicted_age: tested.years,
        fold: tested.fold,
        warnings: row.measured.stats.warnings.join("; "),
    }
}

fn seen_in_pretraining(table: &[Prediction], from: &Checkpoint) -> usize {
    table.iter().filter(|p| from.card.data.subjects.binary_search(&p.subject).is_ok()).count()
}
