//! The plan of a study: what is compared, and the time and memory it takes.
use crate::cases::TrainingStep;
use crate::cases::timed::{Mode, Setup as Step};
use crate::cli::device::Device;
use crate::data::Scan;
use crate::file::write_bytes;
use crate::study::trial::record::{Drawn, is_done};
use crate::study::trial::setup::{Setup, Unit};
use crate::train::config::Training;
use crate::train::samples::Samples;
use indicatif::HumanDuration;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the plan is kept.
const PLAN: &str = "plan.json";

/// What `gyrus watch` needs to know of a study that is at work.
#[derive(Serialize, Deserialize)]
pub(in crate::cli) struct Plan {
    /// Trainings at a time.
    pub jobs: usize,
    /// Folders of all units, from the study's, with the arm of each.
    pub units: Vec<(String, std::path::PathBuf)>,
}

impl Plan {
    /// The plan of the study in `folder`, if there is one.
    pub(in crate::cli) fn read(folder: &Path) -> Option<Plan> {
        serde_json::from_slice(&std::fs::read(folder.join(PLAN)).ok()?).ok()
    }
}

/// Keeps the plan in the study's folder.
pub(super) fn write(setup: &Setup, units: &[Unit], jobs: usize) -> Result<(), Box<dyn Error>> {
    let unit = |unit: &Unit| {
        let folder = setup.folder_of(unit);
        let inside = folder.strip_prefix(&setup.folder).unwrap_or(&folder);
        (setup.arms[unit.arm].name.clone(), inside.to_owned())
    };
    let plan = Plan { jobs, units: units.iter().map(unit).collect() };
    Ok(write_bytes(&setup.folder.join(PLAN), serde_json::to_string(&plan)?.as_bytes())?)
}

/// Prints what will be done.
pub(super) fn show(setup: &Setup, units: &[Unit], jobs: usize, device: Device) -> Result<(), Box<dyn Error>> {
    let (study, first) = (&setup.study, &units[0]);
    let draw = setup.draw(first)?;
    println!("\n{}\n", study.title);
    let tested: Vec<&Scan> =
        setup.cohort.scans().iter().map(|row| &row.scan).filter(|scan| scan.age.is_some()).collect();
    let people: BTreeSet<&str> = tested.iter().map(|scan| scan.subject.as_str()).collect();
    println!(
        "{} scans of {} people to pretrain on; {} scans of {} people of known age to test, in {} folds; {} seed(s)",
        setup.pool.members.len(),
        setup.pool.people(),
        tested.len(),
        people.len(),
        study.design.folds,
        study.design.seeds
    );
    if setup.per_fold() {
        println!(
            "{} of the tested people are also pretrained on: never by the model that they test,",
            setup.same.len()
        );
        println!("so each fold has a pretraining of its own");
    } else {
        println!("nobody who is tested is pretrained on: one pretraining serves all folds");
    }
    let settings = setup.pretraining(&draw, first.seed);
    println!("each arm: {} updates of {} scans\n", settings.train.steps, settings.train.batch);
    println!("  {:24} {:>6} {:>7} {:>13}   what", "arm", "scans", "people", "age");
    let samples = Samples::of(&setup.scans, &setup.scans.modalities())?;
    for arm in &setup.arms {
        let numbers = draw.samples(arm)?;
        let Drawn { scans, subjects, age, .. } = Drawn::of(&samples, &numbers);
        let age = age.map_or("n/a".into(), |[mean, sd]| format!("{mean:.1} ± {sd:.1}"));
        if numbers.is_empty() {
            println!("  {:24} {:>6} {:>7} {:>13}   {}", arm.name, "-", "-", "-", arm.label);
        } else {
            println!("  {:24} {scans:>6} {subjects:>7} {age:>13}   {}", arm.name, arm.label);
        }
    }
    println!("  (numbers of the first seed{})\n", if setup.per_fold() { " and fold" } else { "" });
    let open: Vec<&Unit> = units.iter().filter(|unit| !is_done(&setup.folder_of(unit))).collect();
    print!("{} trainings, {} to go", units.len(), open.len());
    if open.is_empty() {
        println!();
        return Ok(());
    }
    let estimate = Estimate::measure(setup, &settings, jobs, device)?;
    let left: Duration =
        open.into_iter().map(|unit| estimate.unit(setup, unit, settings.train.steps, tested.len())).sum();
    println!(
        ", {jobs} at a time: about {} and {} MiB of memory on this machine",
        HumanDuration(left / jobs as u32),
        (estimate.bytes * jobs) >> 20
    );
    Ok(())
}

/// What one update takes.
struct Estimate {
    pretraining: Duration,
    /// Of the scans of a batch of fine-tuning.
    fine_tuning: Duration,
    batch: usize,
    bytes: usize,
}

impl Estimate {
    /// Times a few updates on random volumes, with a job's share of the cores.
    fn measure(
        setup: &Setup,
        settings: &crate::train::config::Pretrain,
        jobs: usize,
        device: Device,
    ) -> Result<Estimate, Box<dyn Error>> {
        let threads = (rayon::current_num_threads() / jobs).max(1);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let tuning = &setup.study.finetune.train;
        let time = |mode: Mode, training: &Training| {
            let (model, grid) = (settings.model, setup.scans.grid());
            let Training { batch, recompute, .. } = *training;
            let step = Step { preset: model.preset, mode, grid, patch: model.patch, batch, recompute };
            pool.install(|| -> Result<(Duration, usize), String> {
                let device = device.open().map_err(|e| e.to_string())?;
                let step = TrainingStep::new(step);
                let mut machine = step.machine(&device, false).map_err(|e| e.to_string())?;
                let mut times = [Duration::ZERO; 5];
                for time in &mut times {
                    let begun = Instant::now();
                    machine.run().map_err(|e| e.to_string())?;
                    step.loss(&*machine).map_err(|e| e.to_string())?;
                    *time = begun.elapsed();
                }
                times.sort_unstable();
                Ok((times[2], machine.bytes()))
            })
        };
        let (pretraining, most) = time(Mode::Pretrain, &settings.train)?;
        let (fine_tuning, other) = time(Mode::Finetune, tuning)?;
        Ok(Estimate { pretraining, fine_tuning, batch: tuning.batch, bytes: most.max(other) })
    }

    /// What a unit takes that has not begun, with `aged` scans in the cohort.
    fn unit(&self, setup: &Setup, unit: &Unit, steps: u64, aged: usize) -> Duration {
        let (arm, train) = (&setup.arms[unit.arm], &setup.study.finetune.train);
        let pretraining = if arm.kind.pretrains() { self.pretraining * steps as u32 } else { Duration::ZERO };
        if arm.kind.is_curve_point() || !arm.kind.has_network() {
            return pretraining;
        }
        let folds = setup.study.design.folds;
        let learned = aged - aged / folds;
        let updates = (learned / (self.batch * train.accumulate)).max(1) as u64;
        let updates = if train.steps > 0 { train.steps } else { updates * train.epochs as u64 };
        let batches = updates as u32 * train.accumulate as u32;
        pretraining + self.fine_tuning * batches * unit.folds.len() as u32
    }
}
