//! `gyrus watch`: how far a study or a training is.
use super::study::plan::Plan;
use crate::error::OnFile;
use crate::study::trial::record::RECORD;
use crate::study::trial::schedule::FAILED;
use indicatif::HumanDuration;
use serde_json::Value;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use std::{fs, thread};

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
    Ok(Standing::Begun(newest.map_or("begins".into(), |path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let at = last(&path).map_or(String::new(), |(step, loss)| format!(", update {step}, loss {loss:.4}"));
        name + &at
    })))
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

/// A training's log.
const METRICS: &str = "metrics.jsonl";

fn training(folder: &Path) -> Result<(String, bool), Box<dyn Error>> {
    let runs = super::run_folder::models(folder);
    if !runs.iter().any(|run| run.join(METRICS).exists()) {
        let expected = "expected the folder of a gyrus study, pretrain or finetune";
        return Err(format!("{}: nothing to watch; {expected}", folder.display()).into());
    }
    let mut lines = Vec::new();
    for run in runs.iter().filter(|run| run.join(METRICS).exists()) {
        let at = last(run).map_or("begins".into(), |(step, loss)| format!("update {step}, loss {loss:.4}"));
        let ago = modified(&run.join(METRICS)).elapsed().unwrap_or_default();
        lines.push(format!("{}: {at}, {} ago", run.display(), HumanDuration(ago)));
    }
    Ok((lines.join("\n"), false))
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The last update of the training in `folder`, from 1, and its loss.
fn last(folder: &Path) -> Option<(u64, f64)> {
    let text = fs::read_to_string(folder.join(METRICS)).ok()?;
    let of = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        Some((line["step"].as_u64()? + 1, line["loss"].as_f64()?))
    };
    text.lines().rev().find_map(of)
}
