//! `gyrus prepare`: from scans to a cache that training reads.
use crate::{
    data::{self, Skipped},
    image::Preprocessing,
};
use indicatif::ProgressBar;
use std::{error::Error, path::PathBuf, process::ExitCode};

/// Prepare all scans of a dataset for training: reoriented, cropped to the brain, resampled, normalised.
///
/// DATASET is a BIDS folder, a .csv or .tsv manifest with a column "path" (and where known mask, subject, session,
/// age, sex, quality), or one NIfTI file. A run that was stopped goes on where it was. Scans that cannot be used
/// are listed at the end and left out; the exit code is then 3.
///
/// Example: gyrus prepare heads --out heads-cache
#[derive(clap::Args, Debug)]
pub struct Args {
    /// BIDS folder, manifest or NIfTI file
    pub dataset: PathBuf,
    /// Folder of the cache
    #[arg(long, value_name = "CACHE")]
    pub out: PathBuf,
    /// Voxels along x, y and z
    #[arg(long, num_args = 3, value_names = ["X", "Y", "Z"], default_values_t = Preprocessing::default().grid)]
    pub grid: Vec<usize>,
    /// Millimetres between voxels, for sizes to stay comparable; without it every brain is stretched to the grid
    #[arg(long, value_name = "MM")]
    pub spacing: Option<f64>,
}

/// Runs `gyrus prepare`.
///
/// # Errors
/// A dataset without usable scans; another cache in the same place; files that cannot be written.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let grid = args.grid.clone().try_into().expect("clap takes three numbers");
    let settings = Preprocessing { grid, spacing: args.spacing, ..Preprocessing::default() };
    let bar = ProgressBar::new(0).with_style(super::phantom::style());
    let outcome =
        data::prepare(&args.dataset, &args.out, &settings, |n| bar.set_length(n as u64), || bar.inc(1));
    bar.finish_and_clear();
    let report = match outcome {
        Err(data::Error::AllFailed { path, skipped }) => {
            list(&skipped);
            return Err(data::Error::AllFailed { path, skipped }.into());
        }
        other => other?,
    };
    let done = if report.untouched { "is up to date" } else { "is made" };
    println!("{}: {done}, {} volumes, {} with a warning", args.out.display(), report.prepared, report.warned);
    if report.skipped.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    list(&report.skipped);
    Ok(ExitCode::from(3))
}

/// The scans that failed, a line each; the reasons name the files.
pub(super) fn list(skipped: &[Skipped]) {
    eprintln!("left out:");
    for Skipped { reason, .. } in skipped {
        eprintln!("  {reason}");
    }
}
