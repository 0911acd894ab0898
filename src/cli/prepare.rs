//! `gyrus prepare`: from scans to a cache that training reads.
use crate::{
    data::{self, Skipped, Wanted},
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
/// With other modalities than T1w all scans of a session lie on one grid: that of its T1w, within its brain. They are
/// aligned with it by mutual information where they do not share its voxels, and resampled once. PET is divided by the
/// mean of a reference region (then it is an SUVR) or else of the brain, and stored as 2 (value / mean - 1), the same for
/// all scans; frames are averaged by their durations.
///
/// Example: gyrus prepare heads --out heads-cache
#[derive(clap::Args, Debug)]
pub struct Args {
    /// BIDS folder, manifest or NIfTI file
    pub dataset: PathBuf,
    /// Folder of the cache
    #[arg(long, value_name = "CACHE")]
    pub out: PathBuf,
    /// What to prepare, by BIDS suffix; of PET with its tracer
    #[arg(long, value_delimiter = ',', default_value = "T1w", value_name = "T1w,T2w,PET-FDG")]
    pub modalities: Vec<String>,
    /// Reference region of PET: the label of masks *_label-LABEL_mask.nii.gz beside the brain masks; PET without one is
    /// left out. By default "reference" where there is one, else the whole brain
    #[arg(long, value_name = "LABEL")]
    pub reference_mask: Option<String>,
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
    let wanted = Wanted { modalities: args.modalities.clone(), reference: args.reference_mask.clone() };
    let begin = |n: usize| bar.set_length(n as u64);
    let outcome = data::prepare_wanted(&args.dataset, &args.out, &wanted, &settings, begin, || bar.inc(1));
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
    if report.modalities.len() > 1 {
        let counts = report.modalities.iter().map(|(modality, n)| format!("{modality} {n}"));
        println!("{}; {} aligned with a T1w", counts.collect::<Vec<_>>().join(", "), report.aligned);
    }
    match report.references {
        [0, 0] => {}
        [n, 0] => println!("PET: {n} divided by the mean of the reference region (SUVR)"),
        [0, n] => println!("PET: {n} divided by the mean of the brain, which makes no SUVR"),
        [n, m] => eprintln!(
            "warning: PET: {n} divided by the mean of the reference region (SUVR), but {m} by that of the brain: \
             these are not comparable; --reference-mask leaves them out"
        ),
    }
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
