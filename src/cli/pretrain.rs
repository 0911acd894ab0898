//! `gyrus pretrain`: a masked autoencoder from a cache.
use super::run_folder::{self, Options};
use crate::data::{Cache, TRAIN};
use crate::train::{Run, config::Pretrain, pretrain, pretrain::Learn};
use std::{error::Error, path::PathBuf, process::ExitCode};

/// Pretrain a masked autoencoder on prepared scans; no ages are needed.
///
/// Writes model.safetensors, last.safetensors (to resume from), config.toml, split.tsv, metrics.jsonl and TensorBoard
/// events into RUN. With --split, only the subjects in part "train" are seen. All settings and their defaults: gyrus
/// pretrain --defaults.
///
/// Example: gyrus pretrain cache --out runs/mae --set train.epochs=100 --set model.preset=small
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The prepared scans (gyrus prepare).
    #[arg(required_unless_present = "defaults")]
    pub cache: Option<PathBuf>,
    /// The run.
    #[command(flatten)]
    pub run: Options,
}

/// Runs the command.
///
/// # Errors
/// A cache that cannot be read, settings that do not fit, a loss that is not finite, files that cannot be written.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let defaults = Pretrain::default();
    let (Some(cache), Some(out)) = (&args.cache, &args.run.out) else {
        print!("{}", toml::to_string(&defaults)?);
        return Ok(ExitCode::SUCCESS);
    };
    let cache = Cache::open(cache)?;
    let device = args.run.device.open()?;
    let settings = run_folder::open(out, &args.run, &defaults)?;
    let given = run_folder::given_split(out)?;
    let learn = match &given {
        Some((assignment, path)) => Learn::Given(assignment, path),
        None => Learn::All,
    };
    let run = Run { device: &device, folder: out, resume: args.run.resume, shown: true };
    let progress = pretrain::pretrain(&cache, &settings, learn, run)?;
    let watched = progress.best.map_or(String::new(), |loss| {
        format!("; lowest watched loss {loss:.4} after epoch {}", progress.best_epoch)
    });
    let (epochs, steps) = (progress.epochs, progress.steps);
    let seen = |subject: &str| {
        given.as_ref().is_none_or(|(assignment, _)| assignment.part_of(subject) == Some(TRAIN))
    };
    let scans = cache.scans().iter().filter(|row| seen(&row.scan.subject)).count();
    println!("{}: {epochs} epochs, {steps} updates on {scans} scans{watched}", out.display());
    Ok(ExitCode::SUCCESS)
}
