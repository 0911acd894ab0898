//! `gyrus distort`: a dataset, or a cache, made worse by a known amount.
mod cache;
mod dataset;
mod people;

use crate::{
    data::{self, Found, T1W},
    error::chain,
    machine::philox::{Philox, Purpose},
    quality::distort::{LEVELS, Recipe},
    train::settings,
};
use dataset::Plan;
use indicatif::ProgressBar;
use std::{
    collections::BTreeSet,
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Write a copy of a BIDS dataset, or of a cache, whose scans are made worse by a known amount.
///
/// Levels: 1 noise and a bias field; 2 also motion (3 degrees, 3 mm) and ghosts; 3 more of both (6 degrees, 6 mm)
/// and thick slices; 4 still more (10 degrees, 10 mm), a spike, a lost slab and a cut field of view. A recipe has
/// strengths of its own, and blur, Gibbs ringing and wrap-around besides.
///
/// The same seed, scan and strengths give the same file. Brain masks are carried over; a JSON file beside each scan
/// says what was done to it. A run that was stopped goes on where it was. Scans that cannot be used are listed at
/// the end and left out; the exit code is then 3.
///
/// Of a cache the T1w volumes are brought back to intensities, distorted, and normalised anew within their brains;
/// distortions.json says what was done to each; a run that was stopped begins anew. That comes near to distorting the
/// dataset and preparing that, but is not the same: nothing is left around the brain to make ghosts or to be moved with
/// it, strengths go by the brain's size and brightness instead of the head's, what the prepared grid does not resolve is
/// not there, and what a cut field of view leaves keeps its place and size. Prefer the dataset where it is at hand.
///
/// Example: gyrus distort heads --level 3 --out heads-3
#[derive(clap::Args, Debug)]
pub struct Args {
    /// BIDS folder, or a cache that gyrus prepare made
    #[arg(required_unless_present = "print_recipe", value_name = "DATASET|CACHE")]
    dataset: Option<PathBuf>,
    /// Folder to write
    #[arg(long, value_name = "DIR", required_unless_present = "print_recipe")]
    out: Option<PathBuf>,
    /// How severe, 1 to 4
    #[arg(long, value_parser = level_range(), conflicts_with = "recipe", required_unless_present_any = ["recipe", "print_recipe"])]
    level: Option<u8>,
    /// Strengths of one's own, a TOML file as --print-recipe shows it; what it leaves out has no strength
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Seed from which everything follows
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Share of the subjects whose scans are distorted, drawn by the seed; the others are carried over
    #[arg(long, default_value_t = 1.0, value_parser = share)]
    share: f64,
    /// Print the strengths of a level as a recipe, and do nothing else
    #[arg(long, value_name = "LEVEL", value_parser = level_range(), exclusive = true)]
    print_recipe: Option<u8>,
}

/// Why a scan could not be used.
type Failure = Box<dyn Error + Send + Sync>;

/// What the result says of how severe it is.
#[derive(Clone, Copy)]
enum Severity {
    Level(u8),
    Recipe,
}

impl Severity {
    fn text(self) -> String {
        match self {
            Severity::Level(level) => level.to_string(),
            Severity::Recipe => "recipe".into(),
        }
    }
}

/// The share of the subjects whose scans are distorted.
fn chosen<'a>(subjects: impl Iterator<Item = &'a String>, seed: u64, share: f64) -> BTreeSet<String> {
    let subjects: BTreeSet<&String> = subjects.collect();
    let mut subjects: Vec<&String> = subjects.into_iter().collect();
    // The first of a shuffled list: a greater share takes in all of a smaller one.
    Philox::new(seed, Purpose::Distort, 0, u32::MAX).shuffle(&mut subjects);
    subjects.truncate((share * subjects.len() as f64).round() as usize);
    subjects.into_iter().cloned().collect()
}

fn level_range() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(1..=i64::from(LEVELS))
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be between 0 and 1".into()),
    }
}

/// Runs `gyrus distort`.
///
/// # Errors
/// A dataset without usable scans, or that is neither a BIDS folder nor a cache; a recipe that makes no sense; another
/// dataset in the same place; files that cannot be written.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    if let Some(level) = args.print_recipe {
        println!("# Level {level}. A number, or [least, greatest] of what is drawn for each scan.");
        print!("{}", toml::to_string(&Recipe::level(level))?);
        return Ok(ExitCode::SUCCESS);
    }
    let (root, out) = (given(&args.dataset), given(&args.out));
    let (recipe, severity) = match (&args.recipe, args.level) {
        (Some(file), _) => (settings::layer(&Recipe::none(), &[], Some(file), &[])?, Severity::Recipe),
        (None, level) => {
            let level = level.expect("clap takes a level or a recipe");
            (Recipe::level(level), Severity::Level(level))
        }
    };
    recipe.check()?;
    if root.join("cache.json").exists() {
        return cache::run(root, out, &recipe, severity, args.seed, args.share).map_err(any);
    }
    let Found { scans, .. } = data::scans(root, &[T1W.into()])?;
    let in_bids = |scan: &data::Scan| {
        scan.path.strip_prefix(root).is_ok_and(|inside| inside.to_string_lossy().starts_with("sub-"))
    };
    if !scans.iter().all(in_bids) {
        let expected = "expected a BIDS folder (sub-*/anat/*_T1w.nii.gz)";
        return Err(format!("{}: {expected}", root.display()).into());
    }
    let plan = Plan::new(root, out, recipe, severity, args.seed, args.share, &scans);
    plan.begin().map_err(any)?;
    let bar = ProgressBar::new(scans.len() as u64).with_style(super::phantom::style());
    let outcomes = plan.write_scans(&scans, || bar.inc(1));
    bar.finish_and_clear();
    let skipped: Vec<&Failure> = outcomes.iter().filter_map(|o| o.as_ref().err()).collect();
    if skipped.len() == scans.len() {
        let reason = chain(skipped[0].as_ref());
        return Err(
            format!("{}: none of the {} scans could be used: {reason}", root.display(), scans.len()).into()
        );
    }
    plan.finish(&scans).map_err(any)?;
    let changed = scans.iter().zip(&outcomes).filter(|(scan, o)| o.is_ok() && plan.distorts(scan)).count();
    println!("{}: {} scans, {changed} of them distorted", out.display(), scans.len() - skipped.len());
    if skipped.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("left out:");
    skipped.iter().for_each(|failure| eprintln!("  {}", chain(failure.as_ref())));
    Ok(ExitCode::from(3))
}

/// A failure of any thread, as one of this one.
fn any(failure: Failure) -> Box<dyn Error> {
    failure
}

fn given(path: &Option<PathBuf>) -> &Path {
    path.as_deref().expect("clap requires it")
}
