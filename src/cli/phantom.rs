//! `gyrus phantom`: a synthetic BIDS dataset.
use crate::data::phantom::{Cohort, Other};
use indicatif::{ProgressBar, ProgressStyle};
use std::{error::Error, path::PathBuf, process::ExitCode};

/// Write a synthetic BIDS dataset: heads of people aged 20 to 80, with brain masks.
///
/// The files differ in axis order, spacing, obliquity and data type, as files from many scanners do. The same
/// seed gives the same files.
///
/// With --modalities people have a T2w and an FDG PET beside the T1w; uptake falls with age in parts of the cortex, and
/// tells it better than the T1w does.
///
/// Example: gyrus phantom --out heads --subjects 32
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder to write; it must not hold a dataset yet
    #[arg(long)]
    pub out: PathBuf,
    /// How many people, one scan each
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub subjects: u32,
    /// Seed from which everything follows
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Typical edge of a voxel in millimetres, 0.7 to 8; each file has its own within a tenth of it
    #[arg(long, default_value_t = 2.0, value_parser = spacing, value_name = "MM")]
    pub spacing: f64,
    /// How much people, tissues and coils vary beside age, as a multiple of the usual; at 0 people differ by age, sex and
    /// folds alone
    #[arg(long, default_value_t = 1.0, value_parser = variation, value_name = "MULTIPLE")]
    pub variation: f32,
    /// Images of each person: T1w, which is always there, T2w, PET-FDG
    #[arg(long, value_delimiter = ',', default_value = "T1w", value_parser = ["T1w", "T2w", "PET-FDG"], value_name = "T1w,T2w,PET-FDG")]
    pub modalities: Vec<String>,
    /// Share of the people without the PET, 0 to 1; one at least has it
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub missing: f64,
}

/// Runs `gyrus phantom`.
///
/// # Errors
/// A folder that holds a dataset already, or cannot be written.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let bar = ProgressBar::new(u64::from(args.subjects)).with_style(style());
    let asked = |name: &str| args.modalities.iter().any(|m| m == name);
    let all = [("T2w", Other::T2w), ("PET-FDG", Other::PetFdg)];
    let others: Vec<Other> =
        all.into_iter().filter(|(name, _)| asked(name)).map(|(_, other)| other).collect();
    let &Args { seed, spacing, variation, missing, .. } = args;
    let cohort = Cohort { subjects: args.subjects as usize, seed, spacing, variation, others, missing };
    let people = cohort.write(&args.out, || bar.inc(1))?;
    bar.finish_and_clear();
    println!("{}: {} synthetic heads with masks and participants.tsv", args.out.display(), people.len());
    Ok(ExitCode::SUCCESS)
}

fn spacing(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(mm) if (0.7..=8.0).contains(&mm) => Ok(mm),
        _ => Err("must be between 0.7 and 8 millimetres".into()),
    }
}

fn variation(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(multiple) if (0.0..=1.5).contains(&multiple) => Ok(multiple),
        _ => Err("must be between 0 and 1.5".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be between 0 and 1".into()),
    }
}

/// How progress over scans looks.
pub(super) fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:40} {pos}/{len} scans, {eta} left")
        .expect("the template is well formed")
}
