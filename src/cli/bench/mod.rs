//! `gyrus bench`: how fast this machine trains, and where the time goes.
mod ceilings;
mod ops;
mod step;

use super::device::Device;
use crate::cases::{Mode, TrainingStep, timed::Setup};
use crate::file::write_whole;
use crate::model::Preset;
use crate::program;
use ceilings::Ceilings;
use clap::ValueEnum;
use serde_json::{Value, json};
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Measure how fast this machine trains.
///
/// `step` times whole training steps (forward, backward, clipping, AdamW) on random volumes, and says which operations
/// take the time. `ops` times each operation of the step by itself, and says how far it is above its floor: its products
/// at the speed of a large product, or its bytes at that of a copy; the largest gap comes first. `all` does both for
/// every preset, pretraining and fine-tuning. `floor` prints the floors of a step on a GPU of given --ceilings, and needs none.
///
/// A processor computes in f32; its ceiling is the best of several products, and operations find in the cache what fits
/// there. A GPU computes in bf16 and replays graphs; its ceilings are a product of 8192 x 8192 matrices by these
/// kernels and a copy, and operations find the cache cold.
///
/// Example: gyrus bench step --preset small
///
/// Example: gyrus bench all --device cuda --json bench.json
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
    /// Voxels of the volumes along x, y and z.
    #[arg(long, num_args = 3, value_names = ["X", "Y", "Z"], default_values_t = [80, 96, 80])]
    pub grid: Vec<usize>,
    /// Voxels along a patch's edge.
    #[arg(long, default_value_t = 16)]
    pub patch: usize,
    /// Volumes in a step.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch: u16,
    /// Compute each block again for its gradients instead of keeping its activations, as `gyrus pretrain --recompute`
    /// does. GFLOP/s leave out what is done twice.
    #[arg(long)]
    pub recompute: bool,
    /// The machine that computes.
    #[arg(long, value_name = "auto|cpu|cuda[:N]", default_value_t)]
    pub device: Device,
    /// Steps that are timed, or times that each operation is.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,
    /// TFLOP/s of a large product and TB/s of a large copy, for `floor`; by default those measured on an H200
    #[arg(long, num_args = 2, value_names = ["TFLOPS", "TBS"], default_values_t = [790.0, 4.3])]
    pub ceilings: Vec<f64>,
    /// Instead of timing, run one step and print what each operation wrote: shape, mean, NaN count, microseconds.
    #[arg(long, conflicts_with = "json")]
    pub trace: bool,
    /// Write JSON instead of tables: into FILE, or to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Whole training steps.
    Step,
    /// Each operation of a step.
    Ops,
    /// Both, for all presets.
    All,
    /// What the operations of a step cannot be faster than.
    Floor,
}

/// Runs the command.
///
/// # Errors
/// A device that cannot be used, or too little memory on it; a file that cannot be written.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let &[x, y, z] = &args.grid[..] else { return Err("--grid takes three numbers".into()) };
    if args.patch == 0 || [x, y, z].iter().any(|n| *n == 0 || n % args.patch != 0) {
        return Err(format!("--grid {x} {y} {z} is not a whole number of patches of {}³", args.patch).into());
    }
    let (grid, patch, batch) = ([x, y, z], args.patch, args.batch.into());
    let setup = |preset, mode| Setup { preset, mode, grid, patch, batch, recompute: args.recompute };
    if args.trace {
        let step = TrainingStep::new(setup(args.preset, args.mode));
        let mut machine = step.machine(&args.device.open()?, false)?;
        step::print_trace(&program::trace(&mut *machine)?);
        return Ok(ExitCode::SUCCESS);
    }
    let found = match args.what {
        What::Floor => vec![floors(setup(args.preset, args.mode), args)?],
        _ => timed(&args.device.open()?, args, setup)?,
    };
    if let Some(file) = &args.json {
        let found = if let [one] = &found[..] { one.clone() } else { Value::Array(found) };
        write_json(file, &found)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is timed on a device.
fn timed(
    device: &program::Device,
    args: &Args,
    setup: impl Fn(Preset, Mode) -> Setup,
) -> Result<Vec<Value>, Box<dyn Error>> {
    let ceilings = Ceilings::measure(device)?;
    let mut found = Vec::new();
    let setups: Vec<Setup> = if args.what == What::All {
        let modes = |&preset: &Preset| Mode::value_variants().iter().map(move |&mode| (preset, mode));
        Preset::value_variants().iter().flat_map(modes).map(|(preset, mode)| setup(preset, mode)).collect()
    } else {
        vec![setup(args.preset, args.mode)]
    };
    for setup in setups {
        if [What::Step, What::All].contains(&args.what) {
            found.push(one_step(setup, device, ceilings, args)?);
        }
        if [What::Ops, What::All].contains(&args.what) {
            found.push(one_ops(setup, device, ceilings, args)?);
        }
    }
    Ok(found)
}

fn one_step(
    setup: Setup,
    device: &program::Device,
    ceilings: Ceilings,
    args: &Args,
) -> Result<Value, Box<dyn Error>> {
    let found = step::StepReport::measure(&TrainingStep::new(setup), device, ceilings, args.steps)?;
    if args.json.is_none() {
        found.print(&setup);
    }
    Ok(described(json!(found), &setup, device))
}

fn one_ops(
    setup: Setup,
    device: &program::Device,
    ceilings: Ceilings,
    args: &Args,
) -> Result<Value, Box<dyn Error>> {
    let found = ops::measure(&TrainingStep::new(setup), device, ceilings, args.steps)?;
    if args.json.is_none() {
        println!("{setup}");
        ops::print(&found);
    }
    Ok(described(json!({ "ops": found, "ceilings": ceilings }), &setup, device))
}

/// The floors of a step on a device of the given ceilings.
fn floors(setup: Setup, args: &Args) -> Result<Value, Box<dyn Error>> {
    let &[tflops, tbs] = &args.ceilings[..] else { return Err("--ceilings takes two numbers".into()) };
    let ceilings = Ceilings { gflops: 1e3 * tflops, gbs: Some(1e3 * tbs) };
    let found = ops::floors(&TrainingStep::new(setup), ceilings);
    if args.json.is_none() {
        println!("{setup}, at {tflops} TFLOP/s and {tbs} TB/s");
        ops::print_floors(&found);
    }
    Ok(with_setup(json!({ "ops": found, "ceilings": ceilings }), &setup))
}

fn with_setup(mut found: Value, setup: &Setup) -> Value {
    for (key, value) in json!(setup).as_object().into_iter().flatten() {
        found[key] = value.clone();
    }
    found
}

/// With what was run, and where.
fn described(found: Value, setup: &Setup, device: &program::Device) -> Value {
    let mut found = with_setup(found, setup);
    match device {
        program::Device::Cpu => found["threads"] = json!(rayon::current_num_threads()),
        program::Device::Cuda(driver) => found["device"] = json!(driver.name()),
    }
    found
}

fn write_json(file: &Path, found: &Value) -> Result<(), Box<dyn Error>> {
    if file.as_os_str() == "-" {
        println!("{found}");
        return Ok(());
    }
    write_whole(file, |to| writeln!(to, "{found}"))?;
    println!("{}", file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(what: What, device: Device, trace: bool, json: bool) -> Args {
        let json = json.then(|| PathBuf::from("-"));
        let (preset, mode, grid) = (Preset::Tiny, Mode::Pretrain, vec![32, 32, 48]);
        let (patch, batch, steps, ceilings) = (16, 1, 1, vec![790.0, 4.3]);
        let recompute = what == What::Step;
        Args { what, preset, mode, grid, patch, batch, recompute, device, steps, ceilings, trace, json }
    }

    #[test]
    fn steps_and_operations_are_timed_and_traced() {
        for (what, trace, json) in [
            (What::Step, false, false),
            (What::Ops, false, true),
            (What::Step, true, false),
            (What::Floor, false, false),
        ] {
            assert_eq!(run(&args(what, Device::Cpu, trace, json)).unwrap(), ExitCode::SUCCESS);
        }
    }

    #[test]
    fn what_cannot_be_run_is_said() {
        let odd = Args { grid: vec![80, 96, 81], ..args(What::Step, Device::Cpu, false, false) };
        assert!(run(&odd).unwrap_err().to_string().contains("81 is not a whole number of patches"));
        if crate::machine::device::cuda().is_err() {
            run(&args(What::Step, Device::Cuda(0), false, false)).unwrap_err();
        }
    }
}
