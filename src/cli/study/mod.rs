//! `gyrus study`: does low-quality data help or harm pretraining?
pub(super) mod data;
pub(super) mod plan;

use super::device::Device;
use crate::error::{FileError, OnFile};
use crate::file::write_bytes;
use crate::report;
use crate::study::trial::design::{OPTIONAL, Study};
use crate::study::trial::setup::{Setup, Unit};
use crate::study::trial::{collect, record, schedule, tables};
use crate::train::settings;
use indicatif::{ProgressBar, ProgressStyle};
use std::error::Error;
use std::fs::{File, TryLockError};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

/// Compare ways to pretrain on the same people: quality tiers, mixtures, all scans, none.
///
/// STUDY.toml says which scans are pretrained on, how they are sorted into tiers (by gyrus qc, by ratings, or distorted on
/// purpose) and who is tested; see --defaults, and examples/. Every arm has the same number of scans, of the same ages and
/// sites, and the same number of updates; people who are tested are never pretrained on. The plan is printed first.
///
/// Writes table.tsv, comparisons.tsv, predictions.tsv, results.json and report.html into DIR. Stopped at any point, the
/// same command goes on; what is finished is never computed again. An arm that fails does not end the others: it is tried
/// again the next time, and the exit code is then 3. gyrus watch DIR says how far it is.
///
/// Example: gyrus study examples/phantom.toml --out study
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The study, in TOML.
    #[arg(required_unless_present = "defaults")]
    pub study: Option<PathBuf>,
    /// Folder for the study.
    #[arg(long, value_name = "DIR", required_unless_present = "defaults")]
    pub out: Option<PathBuf>,
    /// One setting, e.g. design.seeds=5; goes over STUDY.toml.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Trainings at a time, each with its share of the cores; one for each core without, one on a GPU.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// Make the data, print the plan, and stop.
    #[arg(long)]
    pub plan: bool,
    /// The machine that computes.
    #[arg(long, value_name = "auto|cpu|cuda[:N]", default_value_t)]
    pub device: Device,
    /// Print all settings with their defaults, as TOML, and stop.
    #[arg(long)]
    pub defaults: bool,
}

/// Runs the command.
///
/// # Errors
/// Settings that make no study; datasets that cannot be used; another study in the same place; files that cannot be
/// written.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let defaults = Study::default();
    let (Some(file), Some(out)) = (&args.study, &args.out) else {
        print!("{}", toml::to_string(&defaults)?);
        return Ok(ExitCode::SUCCESS);
    };
    let study: Study = settings::layer(&defaults, &OPTIONAL, Some(file), &args.sets)?;
    let study = study.resolved(file.parent().unwrap_or(Path::new("")));
    study.check().map_err(|problem| format!("{}: {problem}", file.display()))?;
    data::claim(&study, out)?;
    let lock = lock(out)?;
    data::make(&study, out)?;
    let setup = data::open(out)?;
    let units = setup.units();
    let jobs = args.jobs.map_or_else(|| default_jobs(args.device), |jobs| Ok(usize::from(jobs)))?;
    let jobs = jobs.min(units.len());
    plan::show(&setup, &units, jobs, args.device)?;
    if args.plan {
        return Ok(ExitCode::SUCCESS);
    }
    plan::write(&setup, &units, jobs)?;
    train(&setup, &units, jobs, args.device)?;
    let results = collect(&setup)?;
    tables::write(&results, &setup, out)?;
    write_bytes(&out.join("report.html"), report::study::page(&results).as_bytes())?;
    println!("\n{}", tables::text(&results));
    for name in ["table.tsv", "comparisons.tsv", "predictions.tsv", "results.json", "report.html"] {
        println!("{}", out.join(name).display());
    }
    drop(lock);
    Ok(if results.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// Keeps a second study out of the folder as long as the file is open.
fn lock(out: &Path) -> Result<File, Box<dyn Error>> {
    let path = out.join(".lock");
    let file = File::create(&path).on_file("create", &path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(format!("{}: another gyrus study is at work in this folder", out.display()).into())
        }
        Err(TryLockError::Error(error)) => {
            let source = error;
            Err(FileError { path, action: "lock", source }.into())
        }
    }
}

/// As many as there are cores; one where a GPU computes.
fn default_jobs(device: Device) -> Result<usize, Box<dyn Error>> {
    let on_cpu = matches!(device.open()?, crate::program::Device::Cpu);
    Ok(if on_cpu { rayon::current_num_threads() } else { 1 })
}

/// Computes what is not done yet, and shows how far it is.
fn train(setup: &Setup, units: &[Unit], jobs: usize, device: Device) -> Result<(), Box<dyn Error>> {
    let open = |unit: &&Unit| !record::is_done(&setup.folder_of(unit));
    let left: Vec<Unit> = units.iter().filter(open).cloned().collect();
    let bar = ProgressBar::new(units.len() as u64);
    let style = "{bar:30} {pos}/{len} trainings, {eta} left; {msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("the template is valid"));
    bar.set_position((units.len() - left.len()) as u64);
    bar.reset_eta();
    let terminal = std::io::stderr().is_terminal();
    let said = Mutex::new(());
    let open = || device.open().map_err(|error| error.to_string());
    schedule::run(setup, &left, jobs, open, |unit, failure| {
        let _one_at_a_time = said.lock();
        bar.inc(1);
        let name = setup.name_of(unit);
        if let Some(reason) = failure {
            bar.suspend(|| eprintln!("{name} failed: {reason}"));
        }
        let every = units.len().div_ceil(20) as u64;
        if !terminal && (bar.position().is_multiple_of(every) || bar.position() == units.len() as u64) {
            let left = indicatif::HumanDuration(bar.eta());
            eprintln!("{} of {} trainings, {left} left", bar.position(), units.len());
        }
        bar.set_message(name);
    })?;
    bar.finish_and_clear();
    Ok(())
}
