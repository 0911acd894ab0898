//! `gyrus evaluate`: how good predicted ages are, and which of two tables is better.
use std::{error::Error, path::PathBuf, process::ExitCode};

use serde_json::json;

use crate::study::{age_metrics::Report, paired, predictions};

/// The bootstrap's seed: fixed, so that a table always has the same intervals.
const SEED: u64 = 0;

/// Say how good predicted ages are, beside predicting the mean.
///
/// Prints MAE with its 95 % interval over subjects, correlations, bias and errors by decade for each table. Given
/// several tables, each is also compared with the first on the subjects they share.
///
/// Example: gyrus evaluate runs/pretrained runs/scratch
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tables of predictions (columns scan, subject, age, predicted_age), or run folders that hold predictions.csv.
    #[arg(required = true, value_name = "FILE|RUN")]
    pub inputs: Vec<PathBuf>,
    /// Print JSON instead of tables.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// A table that cannot be read, or with fewer than two subjects of known age (in common).
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let mut tables = Vec::new();
    for input in &args.inputs {
        let file = if input.is_dir() { input.join("predictions.csv") } else { input.clone() };
        let rows = predictions::rows(&predictions::read(&file)?);
        let name = input.display().to_string();
        let report = Report::new(&rows, None, SEED).map_err(|e| format!("{name}: {e}"))?;
        tables.push((name, rows, report));
    }
    let (first, others) = tables.split_first().expect("clap requires an input");
    let mut comparisons = Vec::new();
    for other in others {
        let comparison = paired::compare(&other.1, &first.1, SEED)
            .map_err(|e| format!("{} and {}: {e}", other.0, first.0))?;
        comparisons.push((&other.0, comparison));
    }

    if args.json {
        let reports: Vec<_> =
            tables.iter().map(|(input, _, report)| json!({ "input": input, "report": report })).collect();
        let comparisons: Vec<_> = comparisons
            .iter()
            .map(|(input, c)| json!({ "input": input, "minus": first.0, "comparison": c }))
            .collect();
        println!("{:#}", json!({ "reports": reports, "comparisons": comparisons }));
        return Ok(ExitCode::SUCCESS);
    }
    for (input, _, report) in &tables {
        println!("{input}\n{report}");
    }
    for (input, c) in &comparisons {
        let d = c.difference;
        let verdict = match () {
            () if d.high < 0.0 => "better",
            () if d.low > 0.0 => "worse",
            () => "no difference shown",
        };
        println!("{input} minus {}, absolute error on {} shared subjects", first.0, c.subjects);
        println!("  {:.2} years (95 % interval {:.2} to {:.2}): {verdict}\n", d.value, d.low, d.high);
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(inputs: &[&std::path::Path], json: bool) -> Args {
        Args { inputs: inputs.iter().map(|p| p.to_path_buf()).collect(), json }
    }

    #[test]
    fn tables_and_run_folders_are_accepted_and_compared() {
        let run_folder = tempfile::tempdir().unwrap();
        let table = run_folder.path().join("predictions.csv");
        std::fs::write(&table, "scan,subject,age,predicted_age\na,a,50,52\nb,b,60,57\n").unwrap();
        for json in [false, true] {
            assert_eq!(run(&args(&[run_folder.path(), &table], json)).unwrap(), ExitCode::SUCCESS);
        }
    }

    #[test]
    fn a_table_without_known_ages_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let table = folder.path().join("p.csv");
        std::fs::write(&table, "scan,subject,predicted_age\na,a,52\n").unwrap();
        let error = run(&args(&[&table], false)).unwrap_err().to_string();
        assert!(error.contains("p.csv: 0 subject(s) with a known age"), "{error}");
    }
}
