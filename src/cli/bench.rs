//! `gyrus bench`: how fast this machine trains, and where the time goes.
use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;

use super::device::Device;
use crate::cases::{Mode, TrainingStep, timed::Kind};
use crate::machine::cuda;
use crate::machine::{Into, Mat, MatMut, Threads, gemm};
use crate::model::Preset;
use crate::program::{self, Machine};

/// Measure how fast this machine trains.
///
/// `step` times whole training steps (forward, backward, clipping, AdamW) in f32 on random volumes of 80x96x80 voxels
/// in patches of 16³, and says which operations take the time. `ops` times each operation of the step by itself, on
/// tensors that are in the cache if they fit there. The machine's peak is that of the best of several f32 products.
///
/// Example: gyrus bench step --preset small
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is timed.
    #[arg(value_enum, default_value = "step")]
    pub what: What,
    /// The model's size.
    #[arg(long, value_enum, default_value = "tiny")]
    pub preset: Preset,
    /// What the step trains.
    #[arg(long, value_enum, default_value = "pretrain")]
    pub mode: Mode,
    /// Volumes in a step.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch: u16,
    /// The machine that computes.
    #[arg(long, value_name = "auto|cpu|cuda[:N]", default_value_t)]
    pub device: Device,
    /// Steps that are timed, or times that each operation is.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,
    /// Print JSON instead of tables.
    #[arg(long)]
    pub json: bool,
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Whole training steps.
    Step,
    /// Each operation of a step.
    Ops,
}

/// Runs the command.
///
/// # Errors
/// A device that cannot be used, or too little memory on it.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let device = args.device.open()?;
    let step = TrainingStep::new(args.preset, args.mode, args.batch.into());
    match args.what {
        What::Step => {
            let found = StepReport::measure(&step, &device, args)?;
            if args.json { print_json(args, json!(found)) } else { found.print(args) }
        }
        What::Ops => {
            let found = measure_ops(&step, &device, args)?;
            if args.json { print_json(args, json!({ "ops": found })) } else { print_ops(&found) }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_json(args: &Args, mut found: serde_json::Value) {
    found["preset"] = json!(args.preset);
    found["mode"] = json!(args.mode);
    found["batch"] = json!(args.batch);
    found["threads"] = json!(rayon::current_num_threads());
    println!("{found}");
}

#[derive(Serialize)]
struct StepReport {
    steps_per_s: f64,
    volumes_per_s: f64,
    step_ms_median: f64,
    step_ms_min: f64,
    step_ms_p90: f64,
    gflops: f64,
    peak_gflops: f64,
    /// Share of the peak that the matrix products of a step reach over the whole of it.
    peak_share: f64,
    /// The most memory the process has held, in bytes; nothing where the system does not say.
    peak_rss: Option<u64>,
    /// Bytes of all tensors, as planned.
    planned: usize,
    /// Of these, bytes of what is kept between steps: weights, gradients, moments and inputs.
    kept: usize,
    loss: f32,
    /// Milliseconds by operation: the medians of their times, added up.
    operations: BTreeMap<&'static str, f64>,
}

impl StepReport {
    fn measure(step: &TrainingStep, device: &program::Device, args: &Args) -> cuda::Result<Self> {
        let mut machine = step.machine(device, false)?;
        let ops = 0..step.tape.ops().len();
        (0..3).try_for_each(|_| machine.run())?;
        let mut once = || Ok(machine.time_ops(ops.clone())?.as_secs_f64() * 1e3);
        let mut times = (0..args.steps).map(|_| once()).collect::<cuda::Result<Vec<f64>>>()?;
        times.sort_by(f64::total_cmp);
        let [median, min, p90] = [0.5, 0.0, 0.9].map(|q| times[((times.len() - 1) as f64 * q) as usize]);
        let operations = trace(&mut *machine, step, args.steps)?;
        let (peak_rss, peak_gflops) = (peak_rss(), peak_gflops());
        let gflops = step.flops() as f64 / median / 1e6;
        Ok(StepReport {
            steps_per_s: 1e3 / median,
            volumes_per_s: 1e3 / median * f64::from(args.batch),
            step_ms_median: median,
            step_ms_min: min,
            step_ms_p90: p90,
            gflops,
            peak_gflops,
            peak_share: gflops / peak_gflops,
            peak_rss,
            planned: machine.plan().bytes,
            kept: machine.plan().kept,
            loss: step.loss(&*machine)?,
            operations,
        })
    }

    fn print(&self, args: &Args) {
        let mib = |bytes: f64| format!("{:.0} MiB", bytes / f64::from(1 << 20));
        println!(
            "{:?} {:?}, batch {}, {} threads: {:.2} steps/s, {:.1} volumes/s",
            args.preset,
            args.mode,
            args.batch,
            rayon::current_num_threads(),
            self.steps_per_s,
            self.volumes_per_s
        );
        println!(
            "step        {:.2} ms median, {:.2} min, {:.2} p90",
            self.step_ms_median, self.step_ms_min, self.step_ms_p90
        );
        println!(
            "arithmetic  {:.1} GFLOP/s, {:.0} % of the {:.1} that a square product reaches",
            self.gflops,
            100.0 * self.peak_share,
            self.peak_gflops
        );
        println!(
            "memory      {} at most; planned {}, of which {} kept between steps",
            self.peak_rss.map_or_else(|| "unknown".into(), |b| mib(b as f64)),
            mib(self.planned as f64),
            mib(self.kept as f64)
        );
        let total: f64 = self.operations.values().sum();
        let mut rows: Vec<_> = self.operations.iter().collect();
        rows.sort_by(|a, b| b.1.total_cmp(a.1));
        println!("\n{:24} {:>9} {:>7}", "operation", "ms", "share");
        for (name, ms) in rows {
            println!("{name:24} {ms:9.3} {:6.1}%", 100.0 * ms / total);
        }
    }
}

/// Milliseconds by operation's name, from the median time of each operation over `steps` steps.
fn trace(
    machine: &mut dyn Machine<Real = f32>,
    step: &TrainingStep,
    steps: u32,
) -> cuda::Result<BTreeMap<&'static str, f64>> {
    let count = step.tape.ops().len();
    let mut once = |_| (0..count).map(|i| machine.time_ops(i..i + 1)).collect();
    let runs = (0..steps).map(&mut once).collect::<cuda::Result<Vec<Vec<Duration>>>>()?;
    let mut operations = BTreeMap::new();
    for (i, op) in step.tape.ops().iter().enumerate() {
        let mut times: Vec<Duration> = runs.iter().map(|run| run[i]).collect();
        times.sort_unstable();
        *operations.entry(op.name()).or_default() += 1e3 * times[times.len() / 2].as_secs_f64();
    }
    Ok(operations)
}

#[derive(Serialize)]
struct TimedKind {
    #[serde(flatten)]
    kind: Kind,
    us_min: f64,
    us_median: f64,
}

fn measure_ops(step: &TrainingStep, device: &program::Device, args: &Args) -> cuda::Result<Vec<TimedKind>> {
    let mut machine = step.machine(device, true)?;
    machine.run()?;
    let mut found = Vec::new();
    for kind in step.kinds() {
        let ops = kind.first..kind.first + 1;
        let mut once = || Ok(machine.time_ops(ops.clone())?.as_secs_f64() * 1e6);
        once()?;
        let mut times = (0..args.steps).map(|_| once()).collect::<cuda::Result<Vec<f64>>>()?;
        times.sort_by(f64::total_cmp);
        found.push(TimedKind { us_min: times[0], us_median: times[times.len() / 2], kind });
    }
    Ok(found)
}

/// A table with the operations that take most of a step first.
fn print_ops(found: &[TimedKind]) {
    let total: f64 = found.iter().map(|f| f.us_min * f.kind.times as f64).sum();
    let mut rows: Vec<_> = found.iter().collect();
    rows.sort_by(|a, b| (b.us_min * b.kind.times as f64).total_cmp(&(a.us_min * a.kind.times as f64)));
    println!(
        "{:20} {:34} {:>5} {:>10} {:>10} {:>7} {:>14}",
        "operation", "largest read -> largest write", "times", "us min", "us median", "share", "speed"
    );
    for TimedKind { kind, us_min, us_median } in rows {
        let (work, unit) = if kind.flops > 0 { (kind.flops, "GFLOP/s") } else { (kind.bytes, "GB/s") };
        println!(
            "{:20} {:34} {:5} {us_min:10.1} {us_median:10.1} {:6.1}% {:7.1} {unit}",
            kind.name,
            kind.shape,
            kind.times,
            100.0 * us_min * kind.times as f64 / total,
            work as f64 / us_min / 1e3
        );
    }
}

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// GFLOP/s of the best of several square f32 products on all threads.
fn peak_gflops() -> f64 {
    [1024, 1536, 2048].into_iter().map(product_gflops).fold(0.0, f64::max)
}

fn product_gflops(n: usize) -> f64 {
    let (a, b, mut c) = (vec![0.5_f32; n * n], vec![0.25_f32; n * n], vec![0.0_f32; n * n]);
    let mut product = || {
        let (a, b) = (Mat::rows(&a, [n, n]), Mat::rows(&b, [n, n]));
        seconds(|| gemm(MatMut::rows(&mut c, [n, n]), a, b, 1.0, Into::Replace, Threads::All))
    };
    product();
    let best = (0..6).map(|_| product()).fold(f64::INFINITY, f64::min);
    2.0 * (n as f64).powi(3) / best / 1e9
}

/// The most memory that this process has held, in bytes, where the system has a `/proc`.
fn peak_rss() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(what: What, device: Device, json: bool) -> Args {
        Args { what, preset: Preset::Tiny, mode: Mode::Pretrain, batch: 1, device, steps: 1, json }
    }

    #[test]
    fn steps_and_operations_are_timed() {
        for (what, json) in [(What::Step, false), (What::Ops, true)] {
            assert_eq!(run(&args(what, Device::Cpu, json)).unwrap(), ExitCode::SUCCESS);
        }
    }

    #[test]
    fn cuda_is_refused_by_name() {
        if crate::machine::device::cuda().is_err() {
            run(&args(What::Step, Device::Cuda(0), false)).unwrap_err();
        }
    }
}
