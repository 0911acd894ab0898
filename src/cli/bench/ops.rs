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
    /// What the measured ceilings allow it at best; nothing where there are none.
    us_floor: Option<f64>,
}

impl TimedKind {
    /// What a step would gain if all operations of this kind came down to their floor.
    fn gap(&self) -> f64 {
        (self.us_median - self.us_floor.unwrap_or(0.0)) * self.kind.times as f64
    }
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
        let work = if kind.flops > 0 { kind.flops } else { kind.bytes };
        let (speed, us_floor) = (work as f64 / us_median / 1e3, ceilings.floor(&kind));
        found.push(TimedKind { kind, us_min, us_median, speed, us_floor });
    }
    Ok(found)
}

/// A table with the largest gap between an operation and its floor first.
pub(super) fn print(found: &[TimedKind]) {
    let total: f64 = found.iter().map(|f| f.us_median * f.kind.times as f64).sum();
    let mut rows: Vec<_> = found.iter().collect();
    rows.sort_by(|a, b| b.gap().total_cmp(&a.gap()));
    println!(
        "{:20} {:34} {:>5} {:>10} {:>10} {:>7} {:>14} {:>10} {:>7}",
        "operation",
        "largest read -> largest write",
        "times",
        "us min",
        "us median",
        "share",
        "speed",
        "us floor",
        "over"
    );
    for TimedKind { kind, us_min, us_median, speed, us_floor } in rows {
        let unit = if kind.flops > 0 { "GFLOP/s" } else { "GB/s" };
        let floor = us_floor.map_or_else(|| "-".to_owned(), |us| format!("{us:.1}"));
        let over = us_floor.map_or_else(|| "-".to_owned(), |us| format!("{:.2}", us_median / us));
        println!(
            "{:20} {:34} {:5} {us_min:10.1} {us_median:10.1} {:6.1}% {speed:7.1} {unit:7} {floor:>10} {over:>7}",
            kind.name,
            kind.shape(),
            kind.times,
            100.0 * us_median * kind.times as f64 / total,
        );
    }
    let floors: Option<f64> = found.iter().map(|f| Some(f.us_floor? * f.kind.times as f64)).sum();
    match floors {
        Some(floor) => {
            println!("all: {total:.0} us, {:.2} times their floor of {floor:.0} us", total / floor)
        }
        None => println!("all: {total:.0} us"),
    }
}

/// A kind of operation, and what bounds it on a device of given ceilings.
#[derive(Serialize)]
pub(super) struct Floor {
    #[serde(flatten)]
    kind: Kind,
    us_products: f64,
    us_memory: f64,
    us_folded: f64,
    /// What the model of its kernels expects of them, nothing measured; where there is none, or memory takes longer, the
    /// floor.
    us_expected: f64,
}

impl Floor {
    fn us(&self) -> f64 {
        self.us_products.max(self.us_memory)
    }
    fn of_step(&self) -> f64 {
        self.us() * self.kind.times as f64
    }
}

/// What the operations of a step cannot be faster than on a GPU; those that take most of the step first.
pub(super) fn floors(step: &TrainingStep, ceilings: Ceilings) -> Vec<Floor> {
    let floor = |kind: Kind| {
        let (us_products, us_memory) = (ceilings.us_products(&kind), ceilings.us_memory(&kind));
        let us_memory = us_memory.unwrap_or(0.0);
        let us_folded = ceilings.us_of_bytes(kind.folded).unwrap_or(0.0);
        let us_model = kind.cycles.map_or(0.0, |cycles| cycles as f64 / ceilings.mhz());
        Floor {
            us_products,
            us_memory,
            us_folded,
            us_expected: us_products.max(us_memory).max(us_model),
            kind,
        }
    };
    let mut floors: Vec<Floor> = step.kinds(WIDTHS).into_iter().map(floor).collect();
    floors.sort_by(|a, b| b.of_step().total_cmp(&a.of_step()));
    floors
}

pub(super) fn print_floors(floors: &[Floor]) {
    let total: f64 = floors.iter().map(Floor::of_step).sum();
    let expected: f64 = floors.iter().map(|f| f.us_expected * f.kind.times as f64).sum();
    println!(
        "{:20} {:34} {:>5} {:>10} {:>10} {:>10} {:>7} {:>9} {:>11}",
        "operation",
        "largest read -> largest write",
        "times",
        "MFLOP",
        "KB",
        "us floor",
        "share",
        "bound by",
        "us expected"
    );
    for floor in floors {
        let kind = &floor.kind;
        println!(
            "{:20} {:34} {:5} {:10.1} {:10.1} {:10.2} {:6.1}% {:>9} {:11.2}",
            kind.name,
            kind.shape(),
            kind.times,
            kind.flops as f64 / 1e6,
            kind.bytes as f64 / 1e3,
            floor.us(),
            100.0 * floor.of_step() / total,
            if floor.us_products > floor.us_memory { "products" } else { "memory" },
            floor.us_expected,
        );
    }
    println!("all: {total:.0} us");
    println!(
        "expected of an H200 at that rate, by models of the kernels of linear layers and attention, all else at its floor: \
         {expected:.0} us"
    );
    let sum = |of: &str, us: &dyn Fn(&Floor) -> f64| -> f64 {
        floors.iter().filter(|f| f.kind.name.starts_with(of)).map(|f| us(f) * f.kind.times as f64).sum()
    };
    let share = |of: &str| sum(of, &|f| f.us_products) / sum(of, &|f| f.us_expected);
    println!(
        "that is {:.2} of the rate of large products over the step, {:.2} in linear layers, {:.2} in attention",
        share(""),
        share("Linear"),
        share("Attention"),
    );
    println!(
        "what is folded into products would take {:.0} us in kernels of its own",
        sum("", &|f| f.us_folded)
    );
}
