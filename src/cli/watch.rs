//! `gyrus watch`: how far a study or a training is.
use super::run_folder;
use super::study::plan::Plan;
use crate::error::OnFile;
use crate::study::trial::record::RECORD;
use crate::study::trial::schedule::FAILED;
use crate::train::log::{self, METRICS};
use indicatif::HumanDuration;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use std::{fmt, fs, thread};

/// Say how far a study or a training is, and when it will end.
///
/// Looks again every few seconds until it is done; with --once, once. It only reads: what it watches is not disturbed.
///
/// Example: gyrus watch study
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of a study, of a pretraining or of a fine-tuning.
    pub run: PathBuf,
    /// Look once and stop.
    #[arg(long)]
    pub once: bool,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub every: u64,
}

/// Runs the command.
///
/// # Errors
/// A folder that holds neither a study nor a training.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    loop {
        let (text, done) = match Plan::read(&args.run) {
            Some(plan) => study(&args.run, &plan)?,
            None => training(&args.run)?,
        };
        println!("{text}");
        if done || args.once {
            return Ok(ExitCode::SUCCESS);
        }
        thread::sleep(Duration::from_secs(args.every));
    }
}

/// How far one unit is.
enum Standing {
    Open,
    /// What it is at.
    Begun(String),
    Failed,
    /// Seconds that it took.
    Done(f64),
}

fn standing(folder: &Path) -> Result<Standing, Box<dyn Error>> {
    let record = folder.join(RECORD);
    if record.exists() {
        let text = fs::read_to_string(&record).on_file("read", &record)?;
        let value: Value = serde_json::from_str(&text)?;
        return Ok(Standing::Done(value["seconds"].as_f64().unwrap_or(0.0)));
    }
    if folder.join(FAILED).exists() {
        return Ok(Standing::Failed);
    }
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Standing::Open) };
    let logs = entries.flatten().map(|entry| entry.path()).filter(|path| path.join(METRICS).exists());
    let newest = logs.max_by_key(|path| modified(&path.join(METRICS)));
    let Some(newest) = newest else { return Ok(Standing::Begun("begins".into())) };
    let name = newest.file_name().unwrap_or_default().to_string_lossy();
    Ok(Standing::Begun(last(&newest)?.map_or_else(|| name.to_string(), |last| format!("{name}, {last}"))))
}

fn study(folder: &Path, plan: &Plan) -> Result<(String, bool), Box<dyn Error>> {
    let mut by_arm: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    let mut seconds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let (mut begun, mut failed, mut order) = (Vec::new(), 0, Vec::new());
    for (arm, unit) in &plan.units {
        let counts = by_arm.entry(arm).or_insert_with(|| {
            order.push(&**arm);
            [0, 0]
        });
        counts[1] += 1;
        match standing(&folder.join(unit))? {
            Standing::Done(took) => {
                counts[0] += 1;
                seconds.entry(arm).or_default().push(took);
            }
            Standing::Begun(at) => begun.push(format!("  {}: {at}", unit.display())),
            Standing::Failed => failed += 1,
            Standing::Open => {}
        }
    }
    let done: usize = by_arm.values().map(|[done, _]| done).sum();
    let all: Vec<f64> = seconds.values().flatten().copied().collect();
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len().max(1) as f64;
    // An arm that none is known of takes what the others take.
    let of_arm = |arm: &str| seconds.get(arm).map_or_else(|| mean(&all), |of| mean(of));
    let left: f64 = by_arm.iter().map(|(arm, [done, all])| (all - done) as f64 * of_arm(arm)).sum();
    let left = Duration::from_secs_f64(left / plan.jobs as f64);
    let mut text = format!("{}: {done} of {} trainings", folder.display(), plan.units.len());
    if failed > 0 {
        text += &format!(", {failed} failed");
    }
    let finished = done + failed == plan.units.len();
    if !finished && done > 0 {
        text += &format!(", about {} left", HumanDuration(left));
    }
    for arm in order {
        let [done, all] = by_arm[arm];
        let filled = 20 * done / all;
        text += &format!("\n  {arm:24} {}{} {done}/{all}", "#".repeat(filled), ".".repeat(20 - filled));
    }
    for line in begun {
        text += &format!("\n{line}");
    }
    Ok((text, finished))
}

/// How far a training is. It has ended when all of its steps are done, or when it has been tested, which one that runs
/// out of patience comes to before.
fn training(folder: &Path) -> Result<(String, bool), Box<dyn Error>> {
    let runs: Vec<PathBuf> =
        run_folder::models(folder).into_iter().filter(|run| run.join(METRICS).exists()).collect();
    if runs.is_empty() {
        let expected = "expected the folder of a gyrus study, pretrain or finetune";
        return Err(format!("{}: nothing to watch; {expected}", folder.display()).into());
    }
    let (mut lines, mut share) = (Vec::new(), 0.0);
    for run in &runs {
        let last = last(run)?;
        share += last.map_or(0.0, |last| last.progress);
        lines.push(format!("{}: {}", run.display(), last.map_or("begins".into(), |last| last.to_string())));
    }
    share /= folds(folder)?.max(1) as f64;
    let done = share >= 1.0 || folder.join("predictions.csv").exists();
    let took =
        modified(&runs[runs.len() - 1].join(METRICS)).duration_since(modified(&folder.join("config.toml")));
    if let (Ok(took), true) = (took, !done && share > 0.0) {
        let left = took.mul_f64((1.0 - share) / share);
        lines.push(format!("{:.0} % done, about {} left", 100.0 * share, HumanDuration(left)));
    }
    Ok((lines.join("\n"), done))
}

/// The folds of a cross-validation in `folder`; 0 where it is none.
fn folds(folder: &Path) -> Result<usize, Box<dyn Error>> {
    let path = folder.join("folds.tsv");
    if !path.exists() {
        return Ok(0);
    }
    let text = fs::read_to_string(&path).on_file("read", &path)?;
    Ok(text.lines().skip(1).filter_map(|line| line.rsplit('\t').next()).collect::<BTreeSet<&str>>().len())
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The last update that a training has logged.
#[derive(Clone, Copy)]
struct Last {
    step: u64,
    loss: f64,
    /// The share of all updates that is done.
    progress: f64,
}

impl fmt::Display for Last {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Last { step, loss, progress } = self;
        write!(f, "update {step} ({:.0} %), loss {loss:.4}", 100.0 * progress)
    }
}

fn last(folder: &Path) -> Result<Option<Last>, Box<dyn Error>> {
    let of = |line: &Value| {
        let (step, loss) = (line["step"].as_u64()? + 1, line["loss"].as_f64()?);
        // Logs of earlier versions do not say it.
        Some(Last { step, loss, progress: line["progress"].as_f64().unwrap_or(0.0) })
    };
    Ok(log::lines(folder)?.iter().rev().find_map(of))
}
