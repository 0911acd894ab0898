//! Whole training steps.
use super::ceilings::Ceilings;
use crate::cases::TrainingStep;
use crate::cases::timed::Setup;
use crate::machine::cuda;
use crate::program::{Device, Machine, Traced};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// How fast a step is, and what takes its time.
#[derive(Serialize)]
pub(super) struct StepReport {
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
    /// Bytes of all tensors, as planned, with what kernels work in.
    planned: usize,
    /// Of these, bytes of what is kept between steps: weights, gradients, moments and inputs.
    kept: usize,
    loss: f32,
    /// Milliseconds by operation: the medians of their times, added up.
    operations: BTreeMap<&'static str, f64>,
}

impl StepReport {
    pub(super) fn measure(
        step: &TrainingStep,
        device: &Device,
        ceilings: Ceilings,
        steps: u32,
    ) -> cuda::Result<Self> {
        let mut machine = step.machine(device, false)?;
        let ops = 0..step.tape.ops().len();
        (0..3).try_for_each(|_| machine.run())?;
        let mut once = || Ok(machine.time_ops(ops.clone())?.as_secs_f64() * 1e3);
        let mut times = (0..steps).map(|_| once()).collect::<cuda::Result<Vec<f64>>>()?;
        times.sort_by(f64::total_cmp);
        let [median, min, p90] = [0.5, 0.0, 0.9].map(|q| times[((times.len() - 1) as f64 * q) as usize]);
        let operations = by_operation(&mut *machine, step, steps)?;
        let gflops = step.flops() as f64 / median / 1e6;
        Ok(StepReport {
            steps_per_s: 1e3 / median,
            volumes_per_s: 1e3 / median * step.setup.batch as f64,
            step_ms_median: median,
            step_ms_min: min,
            step_ms_p90: p90,
            gflops,
            peak_gflops: ceilings.gflops,
            peak_share: gflops / ceilings.gflops,
            peak_rss: peak_rss(),
            planned: machine.bytes(),
            kept: machine.plan().kept,
            loss: step.loss(&*machine)?,
            operations,
        })
    }

    pub(super) fn print(&self, setup: &Setup) {
        let mib = |bytes: f64| format!("{:.0} MiB", bytes / f64::from(1 << 20));
        println!("{setup}: {:.2} steps/s, {:.1} volumes/s", self.steps_per_s, self.volumes_per_s);
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
            "memory      {} of the host at most; planned {}, of which {} kept between steps",
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
fn by_operation(
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

/// The most memory that this process has held, in bytes, where the system has a `/proc`.
fn peak_rss() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

/// A line for each tensor that an operation wrote.
pub(super) fn print_trace(traced: &[Traced]) {
    println!(
        "{:>5} {:24} {:32} {:>20} {:>12} {:>6} {:>10}",
        "", "operation", "tensor", "shape", "mean", "NaN", "us"
    );
    for t in traced {
        let shape: Vec<String> = t.shape.iter().map(usize::to_string).collect();
        println!(
            "{:5} {:24} {:32} {:>20} {:>12.4e} {:>6} {:>10.1}",
            t.number,
            t.op,
            t.tensor.as_deref().unwrap_or(""),
            shape.join("x"),
            t.mean,
            t.nan,
            t.us
        );
    }
}
