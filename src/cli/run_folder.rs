//! The folder of a training run: made new, or taken up again with the settings it was begun with.
use super::device::Device;
use crate::data::Assignment;
use crate::error::{FileError, OnFile};
use crate::file::write_whole;
use crate::train::settings;
use serde::{Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};
use std::{error::Error, fs, io::Write};

/// What all training commands are told of their run.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Folder for the run.
    #[arg(long, value_name = "RUN", required_unless_present = "defaults")]
    pub out: Option<PathBuf>,
    /// Settings in TOML.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One setting, e.g. train.epochs=50; goes over --config.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Follow this split: a table with the part of each subject (gyrus data DATASET --split .. --out FILE).
    #[arg(long, value_name = "FILE")]
    pub split: Option<PathBuf>,
    /// Compute each block again for its gradients instead of keeping its activations: the same result to the bit in less
    /// memory and more time, so that larger batches fit (train.recompute=true).
    #[arg(long)]
    pub recompute: bool,
    /// Go on with the run in RUN from its last checkpoint; the result is the same to the bit.
    #[arg(long)]
    pub resume: bool,
    /// The machine that computes.
    #[arg(long, value_name = "auto|cpu|cuda[:N]", default_value_t)]
    pub device: Device,
    /// Print all settings with their defaults, as TOML, and stop.
    #[arg(long)]
    pub defaults: bool,
}

/// The split that a run follows, in its folder.
const SUBJECTS: &str = "subjects.tsv";

/// Makes `folder` for a new run with `settings`, or, to resume, takes up the settings that it holds. Settings are
/// layered: defaults, `--config`, `--set`, `--recompute`, which a run that is resumed may be given anew.
///
/// # Errors
/// Settings that are wrong; a folder that holds a run already, or none to resume; files that cannot be written.
pub(super) fn open<T: Serialize + DeserializeOwned>(
    folder: &Path,
    options: &Options,
    defaults: &T,
) -> Result<T, Box<dyn Error>> {
    let Options { config, sets, resume, split, recompute, .. } = options;
    let recompute: &[String] = if *recompute { &["train.recompute=true".to_owned()] } else { &[] };
    let kept = folder.join("config.toml");
    if *resume {
        if !kept.exists() {
            return Err(format!("{}: no run to resume: it has no config.toml", folder.display()).into());
        }
        if config.is_some() || !sets.is_empty() || split.is_some() {
            let out = "leave out --config, --set and --split";
            return Err(format!("--resume goes on with the run's own settings and split: {out}").into());
        }
        return Ok(settings::layer(defaults, &[], Some(&kept), recompute)?);
    }
    if kept.exists() {
        let hint = "choose another --out, or go on with --resume";
        return Err(format!("{}: holds a run already; {hint}", folder.display()).into());
    }
    let settings = settings::layer(defaults, &[], config.as_deref(), &[sets, recompute].concat())?;
    let assignment = split.as_deref().map(Assignment::read).transpose()?;
    create(folder)?;
    if let Some(assignment) = assignment {
        assignment.write(&folder.join(SUBJECTS))?;
    }
    let text = toml::to_string(&settings).expect("settings are a struct of TOML's types");
    write_whole(&kept, |file| file.write_all(text.as_bytes()))?;
    Ok(settings)
}

/// The split that the run in `folder` was told to follow, and where it is kept.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn given_split(folder: &Path) -> Result<Option<(Assignment, PathBuf)>, Box<dyn Error>> {
    let kept = folder.join(SUBJECTS);
    Ok(kept.exists().then(|| Assignment::read(&kept)).transpose()?.map(|assignment| (assignment, kept)))
}

/// The folders of the models of the run `path`: of all folds where it is a cross-validation, or else itself.
pub(super) fn models(path: &Path) -> Vec<PathBuf> {
    let folds = (1..).map(|fold| path.join(format!("fold-{fold}"))).take_while(|folder| folder.is_dir());
    let folds: Vec<PathBuf> = folds.collect();
    if folds.is_empty() { vec![path.to_owned()] } else { folds }
}

fn create(folder: &Path) -> Result<(), FileError> {
    fs::create_dir_all(folder).on_file("create", folder)
}
