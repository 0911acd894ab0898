//! Each operation of a training step, by itself.
use super::ceilings::Ceilings;
use crate::cases::{TrainingStep, timed::Kind};
use crate::machine::{Memory, cuda};
use crate::program::{Device, cuda::WIDTHS, plan::Widths};
use serde::Serialize;

/// Bytes that are written between two runs on a GPU, several times what its cache holds.
const FLUSH: usize = 256 << 20;

/// A kind of operation, timed.
#[derive(Serialize)]
pub(super) struct TimedKind {
    #[serde(flatten)]
    kind: Kind,
    us_min: f64,
    us_median: f64,
    /// Work over the median: GFLOP/s where there are matrix products, GB/s elsewhere.
    speed: f64,
    /// Share of the measured ceiling; nothing where there is none.
    ceiling_share: Option<f64>,
}

pub(super) fn measure(
    step: &TrainingStep,
    device: &Device,
    ceilings: Ceilings,
    runs: u32,
) -> cuda::Result<Vec<TimedKind>> {
    let mut machine = step.machine(device, true)?;
    machine.run()?;
    let flush = match device {
        Device::Cpu => None,
        Device::Cuda(driver) => Some((driver, Memory::new(driver, FLUSH)?)),
    };
    let widths = if flush.is_some() { WIDTHS } else { Widths::host::<f32>() };
    let mut found = Vec::new();
    for kind in step.kinds(widths) {
        let ops = kind.first..kind.first + 1;
        let mut once = || {
            if let Some((driver, memory)) = &flush {
                driver.fill(memory.at(), 0x3C, FLUSH)?;
            }
            Ok(machine.time_ops(ops.clone())?.as_secs_f64() * 1e6)
        };
        once()?;
        let mut times = (0..runs).map(|_| once()).collect::<cuda::Result<Vec<f64>>>()?;
        times.sort_by(f64::total_cmp);
        let (us_min, us_median) = (times[0], times[times.len() / 2]);
        let (work, ceiling) =
            if kind.flops > 0 { (kind.flops, Some(ceilings.gflops)) } else { (kind.bytes, ceilings.gbs) };
        let speed = work as f64 / us_median / 1e3;
        let ceiling_share = ceiling.map(|ceiling| speed / ceiling);
        found.push(TimedKind { kind, us_min, us_median, speed, ceiling_share });
    }
    Ok(found)
}

/// A table with the operations that take most of a step first.
pub(super) fn print(found: &[TimedKind]) {
    let total: f64 = found.iter().map(|f| f.us_median * f.kind.times as f64).sum();
    let mut rows: Vec<_> = found.iter().collect();
    rows.sort_by(|a, b| (b.us_median * b.kind.times as f64).total_cmp(&(a.us_median * a.kind.times as f64)));
    println!(
        "{:20} {:34} {:>5} {:>10} {:>10} {:>7} {:>14} {:>8}",
        "operation",
        "largest read -> largest write",
        "times",
        "us min",
        "us median",
        "share",
        "speed",
        "ceiling"
    );
    for TimedKind { kind, us_min, us_median, speed, ceiling_share } in rows {
        let unit = if kind.flops > 0 { "GFLOP/s" } else { "GB/s" };
        let ceiling = ceiling_share.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", 100.0 * share));
        println!(
            "{:20} {:34} {:5} {us_min:10.1} {us_median:10.1} {:6.1}% {speed:7.1} {unit:7} {ceiling:>8}",
            kind.name,
            kind.shape(),
            kind.times,
            100.0 * us_median * kind.times as f64 / total,
        );
    }
}
