//! `gyrus check`: whether this build computes what it says it computes.
use super::device::Device;
use crate::cases::gradcheck::{F32_BOUND, GRADIENT_BOUND, Outcome};
use crate::cases::{self, controls, reference};
use serde_json::json;
use std::{error::Error, path::PathBuf, process::ExitCode};

/// Check every operation's gradient, every precision, and that planted faults are caught.
///
/// Each case is differentiated and held against central differences in f64, and its f32 results against f64. Then
/// faults are planted on purpose, to show that the checks see them. With --reference, a training step recorded by
/// another implementation is computed again instead, tensor by tensor.
///
/// Exits with 1 when anything is out of its bounds.
///
/// Example: gyrus check
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
    /// Print JSON instead of tables.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// A recording that cannot be read, a filter that fits nothing, or a device that this build has not.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let _ = args.device.open()?;
    let passed = match &args.reference {
        Some(folder) => check_reference(args, folder)?,
        None => check_cases(args)?,
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
    }
}
