//! `gyrus check`: whether this build computes what it says it computes.
use super::device::Device;
use crate::cases::gradcheck::{F32_BOUND, GRADIENT_BOUND, Outcome};
use crate::cases::parity::{BF16_BOUND, NORM_BOUND, Parity};
use crate::cases::{self, Conformed, controls, parity, reference};
use crate::machine::Driver;
use crate::program;
use serde_json::json;
use std::rc::Rc;
use std::{error::Error, path::PathBuf, process::ExitCode};

/// Check every operation's gradient, every precision, and that planted faults are caught.
///
/// Each case is differentiated and held against central differences in f64, and its f32 results against f64. Then
/// faults are planted on purpose, to show that the checks see them. With --reference, a training step recorded by
/// another implementation is computed again instead, tensor by tensor.
///
/// On a GPU (--device cuda, or auto where there is one), each case with its gradients is computed by the kernels and
/// held against its f64 definition, on the same bf16 inputs: launch by launch, a hundred times more for the same bits,
/// and as a graph. Outputs begin as NaN, every tensor lies between guard bytes, and each instruction that kernels
/// take from PTX is tried by itself.
///
/// Exits with 1 when anything is out of its bounds.
///
/// Example: gyrus check
///
/// Example: gyrus check --device cuda
///
/// Example: gyrus check attention
///
/// Example: gyrus check --reference tests/golden/tiny
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only cases (or, with --reference, tensors) whose name contains this.
    pub filter: Option<String>,
    /// A folder with another implementation's recorded training step (meta.json and safetensors).
    #[arg(long, value_name = "DIR")]
    pub reference: Option<PathBuf>,
    /// Where to compute.
    #[arg(long, value_name = "auto|cpu|cuda[:N]", default_value_t)]
    pub device: Device,
    /// On a GPU, how often each case is run again for the same bits, instead of 100 times.
    #[arg(long, value_name = "N")]
    pub repeats: Option<usize>,
    /// On a GPU, leave out the guard bytes round tensors: a memory checker sees more without them.
    #[arg(long)]
    pub no_guards: bool,
    /// Print JSON instead of tables.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// A recording that cannot be read, a filter that fits nothing, or a device that this build has not.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let passed = match &args.reference {
        Some(folder) if matches!(args.device, Device::Auto | Device::Cpu) => check_reference(args, folder)?,
        Some(_) => {
            let device = args.device;
            return Err(format!("--reference is computed on the CPU, in f64 and f32, not on {device}").into());
        }
        None => match args.device.open()? {
            program::Device::Cpu => check_cases(args)?,
            program::Device::Cuda(driver) => check_kernels(args, &driver)?,
        },
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn wanted(args: &Args, name: &str) -> bool {
    args.filter.as_deref().is_none_or(|part| name.contains(part))
}

fn none_fits(args: &Args) -> Box<dyn Error> {
    format!(
        "nothing is called like `{}`; leave the filter out to see all names",
        args.filter.as_deref().unwrap_or("")
    )
    .into()
}

fn verdict(passed: bool) -> &'static str {
    if passed { "ok" } else { "FAIL" }
}

fn check_cases(args: &Args) -> Result<bool, Box<dyn Error>> {
    let cases: Vec<_> = cases::table().into_iter().filter(|c| wanted(args, c.name)).collect();
    if cases.is_empty() {
        return Err(none_fits(args));
    }
    let width = cases.iter().map(|c| c.shape.chars().count()).max().unwrap_or(0);
    if !args.json {
        println!(
            "{:36} {:width$} {:>9} {:>7} {:>7} {:>9} {:>7}",
            "operation", "shape", "gradient", "bound", "checked", "f32", "bound"
        );
    }
    let mut outcomes = Vec::new();
    for case in &cases {
        let outcome = cases::check(case);
        if !args.json {
            print_outcome(&outcome, width);
        }
        outcomes.push(outcome);
    }
    let controls = controls::controls();
    let failed = outcomes.iter().filter(|o| !o.passed()).count();
    let missed = controls.iter().filter(|c| !c.caught).count();
    if args.json {
        let cases: Vec<_> = outcomes.iter().map(|o| json!({ "outcome": o, "passed": o.passed() })).collect();
        let bounds = json!({ "gradient": GRADIENT_BOUND, "f32": F32_BOUND });
        println!("{:#}", json!({ "cases": cases, "bounds": bounds, "controls": controls }));
    } else {
        println!("\n{:60} {:46} {:>9}", "planted fault", "caught by", "error");
        for c in &controls {
            println!(
                "{:60} {:46} {:>9.1e} {}",
                c.fault,
                c.caught_by,
                c.error,
                if c.caught { "caught" } else { "MISSED" }
            );
        }
        let derivatives: usize = outcomes.iter().map(|o| o.derivatives).sum();
        println!(
            "\n{} cases, {derivatives} derivatives, {failed} failed; {} planted faults, {missed} missed",
            outcomes.len(),
            controls.len()
        );
    }
    Ok(failed == 0 && missed == 0)
}

fn print_outcome(o: &Outcome, width: usize) {
    let gradient = o.gradient.map_or("-".to_owned(), |e| format!("{e:.1e}"));
    println!(
        "{:36} {:width$} {gradient:>9} {GRADIENT_BOUND:>7.0e} {:>7} {:>9.1e} {F32_BOUND:>7.0e} {}",
        o.name,
        o.shape,
        o.derivatives,
        o.f32,
        verdict(o.passed())
    );
}

/// Runs of each case that have to give the same bits as the first.
const REPEATS: usize = 100;

fn check_kernels(args: &Args, driver: &Rc<dyn Driver>) -> Result<bool, Box<dyn Error>> {
    let cases: Vec<_> = cases::table().into_iter().filter(|c| wanted(args, c.name)).collect();
    let mut primitives = cases::conformance(driver)?;
    primitives.retain(|p| wanted(args, p.kernel));
    if cases.is_empty() && primitives.is_empty() {
        return Err(none_fits(args));
    }
    let width = cases.iter().map(|c| c.shape.chars().count()).max().unwrap_or(0);
    if !args.json {
        println!("{}, {} multiprocessors", driver.name(), driver.processors());
        println!(
            "{:36} {:width$} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "operation", "shape", "error", "bound", "norm", "same bits", "guards"
        );
    }
    let repeats = args.repeats.unwrap_or(REPEATS);
    let mut outcomes = Vec::new();
    for case in &cases {
        let parity = parity::compare(case, driver, repeats, !args.no_guards);
        if !args.json {
            print_parity(&parity, width);
        }
        outcomes.push(parity);
    }
    let failed =
        outcomes.iter().filter(|o| !o.passed()).count() + primitives.iter().filter(|p| p.wrong > 0).count();
    if args.json {
        let cases: Vec<_> = outcomes.iter().map(|o| json!({ "outcome": o, "passed": o.passed() })).collect();
        let bounds = json!({ "bf16": BF16_BOUND, "f32": F32_BOUND, "norm": NORM_BOUND });
        let device = driver.name();
        println!(
            "{:#}",
            json!({ "device": device, "cases": cases, "primitives": primitives, "bounds": bounds })
        );
    } else {
        print_primitives(&primitives);
        println!("\n{} cases, {} primitives, {failed} failed", outcomes.len(), primitives.len());
    }
    Ok(failed == 0)
}

fn print_primitives(primitives: &[Conformed]) {
    println!("\n{:36} {:>9} {:>9}", "primitives, against their manual", "results", "wrong");
    for p in primitives {
        let outcome = if p.words == 0 { "not on this device" } else { verdict(p.wrong == 0) };
        println!("{:36} {:>9} {:>9} {outcome}", p.kernel, p.words, p.wrong);
        if let Some((at, written, right)) = p.first {
            println!("    word {at} is {written:#010x} and ought to be {right:#010x}");
        }
    }
}

fn print_parity(p: &Parity, width: usize) {
    if let Some(failure) = &p.failure {
        println!("{:36} {:width$} {failure} FAIL", p.name, p.shape);
        return;
    }
    let same = format!("{}/{}", p.runs - p.differing, p.runs);
    let guards = if p.damaged == 0 { "whole".to_owned() } else { format!("{} hit", p.damaged) };
    println!(
        "{:36} {:width$} {:>9.1e} {:>9.1e} {:>9.1e} {same:>9} {guards:>9} {}",
        p.name,
        p.shape,
        p.error,
        p.bound,
        p.norm,
        verdict(p.passed())
    );
}

fn check_reference(args: &Args, folder: &std::path::Path) -> Result<bool, Box<dyn Error>> {
    let mut comparison = reference::compare(folder)?;
    comparison.rows.retain(|row| wanted(args, &row.tensor));
    let reference::Comparison { rows, not_compared } = &comparison;
    if rows.is_empty() {
        return Err(none_fits(args));
    }
    if args.json {
        println!("{:#}", json!(comparison));
    } else {
        let width = rows.iter().map(|r| r.tensor.len()).max().unwrap_or(0);
        println!("{:width$} {:>9} {:>7} {:>9} {:>7}", "tensor", "f64", "bound", "f32", "bound");
        for r in rows {
            println!(
                "{:width$} {:>9.1e} {:>7.0e} {:>9.1e} {:>7.0e} {}",
                r.tensor,
                r.f64,
                r.f64_bound,
                r.f32,
                r.f32_bound,
                verdict(r.passed())
            );
        }
        if !not_compared.is_empty() {
            println!("not compared, for want of a counterpart: {}", not_compared.join(", "));
        }
        let failed = rows.iter().filter(|r| !r.passed()).count();
        println!("\n{} tensors, {failed} failed", rows.len());
    }
    Ok(rows.iter().all(reference::Row::passed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(filter: Option<&str>, reference: Option<&str>) -> Args {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        Args {
            filter: filter.map(str::to_owned),
            reference: reference.map(|folder| root.join(folder)),
            device: Device::Auto,
            repeats: None,
            no_guards: false,
            json: true,
        }
    }

    #[test]
    fn cases_and_recordings_that_are_right_pass() {
        assert_eq!(run(&args(None, Some("tests/golden/tiny"))).unwrap(), ExitCode::SUCCESS);
        assert!(wanted(&args(Some("norm"), None), "layer_norm") && !wanted(&args(Some("norm"), None), "add"));
    }

    #[test]
    fn what_cannot_be_checked_is_said() {
        let message = |args: &Args| run(args).unwrap_err().to_string();
        assert!(message(&args(Some("no such"), None)).contains("nothing is called like `no such`"));
        assert!(message(&args(None, Some("tests"))).contains("meta.json: cannot read"));
        let elsewhere = Args { device: Device::Cuda(1), ..args(None, Some("tests/golden/tiny")) };
        assert!(message(&elsewhere).contains("computed on the CPU, in f64 and f32, not on cuda:1"));
    }
}
