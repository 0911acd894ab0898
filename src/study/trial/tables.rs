//! A study's results as tables, for people and for other programs.
use super::record::done;
use super::results::{Compared, Outcome, Results};
use super::setup::Setup;
use crate::error::FileError;
use crate::file::{write_bytes, write_whole};
use crate::study::Error;
use crate::study::arms::Summary;
use crate::study::bootstrap::Estimate;
use std::fmt::Write as _;
use std::path::Path;

/// Writes table.tsv, comparisons.tsv, predictions.tsv and results.json into `folder`.
///
/// # Errors
/// Files that cannot be read or written.
pub fn write(results: &Results, setup: &Setup, folder: &Path) -> Result<(), Error> {
    write_tsv(&folder.join("table.tsv"), &ARMS, arms(results))?;
    write_tsv(&folder.join("comparisons.tsv"), &COMPARISONS, comparisons(results))?;
    write_tsv(&folder.join("predictions.tsv"), &PREDICTIONS, predictions(setup)?)?;
    let json = serde_json::to_string_pretty(results).expect("results are plain data");
    Ok(write_bytes(&folder.join("results.json"), json.as_bytes())?)
}

const ARMS: [&str; 19] = [
    "arm",
    "what",
    "scans",
    "people",
    "age_mean",
    "age_sd",
    "steps",
    "mae",
    "mae_low",
    "mae_high",
    "mae_sd_over_seeds",
    "rmse",
    "r2",
    "r",
    "bias",
    "frozen_mae",
    "frozen_mae_low",
    "frozen_mae_high",
    "frozen_r",
];

fn arms(results: &Results) -> Vec<Vec<String>> {
    let row = |arm: &super::results::Arm| {
        let tuned = arm.fine_tuned.as_ref();
        let frozen = arm.frozen.as_ref();
        let mae = |e: Option<Estimate>| e.map_or([None; 3], |e| [Some(e.value), Some(e.low), Some(e.high)]);
        let [value, low, high] = mae(tuned.map(|s| s.mae));
        let [frozen_value, frozen_low, frozen_high] = mae(frozen.map(|s| s.mae));
        let numbers = [
            Some(arm.scans),
            Some(arm.subjects),
            arm.age.map(|a| a[0]),
            arm.age.map(|a| a[1]),
            Some(arm.steps as f64),
            value,
            low,
            high,
            tuned.map(|s| s.mae_sd_over_seeds),
            tuned.map(|s| s.rmse.value),
            tuned.map(|s| s.r2.value),
            tuned.map(|s| s.pearson_r.value),
            tuned.map(|s| s.bias),
            frozen_value,
            frozen_low,
            frozen_high,
            frozen.map(|s| s.pearson_r.value),
        ];
        [arm.name.clone(), arm.label.clone()].into_iter().chain(numbers.map(number)).collect()
    };
    results.arms.iter().map(row).collect()
}

const COMPARISONS: [&str; 14] = [
    "outcome",
    "arm",
    "with",
    "people",
    "runs",
    "difference",
    "low",
    "high",
    "p_people",
    "p_runs",
    "p_crossed",
    "p",
    "p_holm",
    "shown",
];

fn comparisons(results: &Results) -> Vec<Vec<String>> {
    let row = |compared: &Compared| {
        let c = &compared.comparison;
        let Estimate { value, low, high } = c.difference;
        let numbers = [value, low, high, c.p_subjects, c.p_runs, c.p_crossed, c.p, compared.p_holm];
        let words = [outcome(compared.outcome).to_owned(), compared.arm.clone(), compared.with.clone()];
        let counts = [c.subjects.to_string(), c.runs.to_string()];
        let shown = [compared.shown.to_string()];
        let numbers = numbers.map(|x| number(Some(x)));
        words.into_iter().chain(counts).chain(numbers).chain(shown).collect()
    };
    results.comparisons.iter().map(row).collect()
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::FineTuned => "fine-tuned",
        Outcome::Frozen => "frozen",
    }
}

const PREDICTIONS: [&str; 8] = ["outcome", "arm", "seed", "fold", "subject", "scan", "age", "predicted_age"];

fn predictions(setup: &Setup) -> Result<Vec<Vec<String>>, Error> {
    let mut all = Vec::new();
    for unit in setup.units() {
        let Some(record) = done(&setup.folder_of(&unit))? else { continue };
        for (outcome, rows) in [("fine-tuned", &record.fine_tuned), ("frozen", &record.frozen)] {
            all.extend(rows.iter().map(|row| {
                let numbers = [row.age, row.prediction].map(|x| number(Some(x)));
                let [seed, fold] = [row.seed.to_string(), row.fold.to_string()];
                let words = [
                    outcome.to_owned(),
                    record.arm.clone(),
                    seed,
                    fold,
                    row.subject.clone(),
                    row.scan.clone(),
                ];
                words.into_iter().chain(numbers).collect::<Vec<String>>()
            }));
        }
    }
    Ok(all)
}

/// With all digits: a study that was stopped and went on is held to the last one.
fn number(x: Option<f64>) -> String {
    x.filter(|x| x.is_finite()).map_or("n/a".into(), |x| x.to_string())
}

fn write_tsv(path: &Path, header: &[&str], rows: Vec<Vec<String>>) -> Result<(), FileError> {
    write_whole(path, |file| {
        let mut table = csv::WriterBuilder::new().delimiter(b'\t').from_writer(file);
        table.write_record(header)?;
        rows.iter().try_for_each(|row| table.write_record(row))?;
        table.flush()
    })
}

/// The results in a few lines, for a terminal.
pub fn text(results: &Results) -> String {
    let mut text = format!("{}\n\n", results.answer);
    let width = results.arms.iter().map(|arm| arm.name.len()).max().unwrap_or(0).max(15);
    let _ = writeln!(
        text,
        "  {:width$} {:>6}   {:^22} {:>5}   {:^22} {:>5}",
        "", "scans", "fine-tuned, years", "r", "frozen, years", "r"
    );
    let interval = |e: Estimate| format!("{:5.2} ({:.2} to {:.2})", e.value, e.low, e.high);
    let mut line = |name: &str, scans: f64, tuned: Option<&Summary>, frozen: Option<&Summary>| {
        let scans = if scans > 0.0 { format!("{scans:.0}") } else { "-".into() };
        let of = |s: Option<&Summary>| {
            let r = |s: &Summary| Some(s.pearson_r.value).filter(|r| r.is_finite());
            let r = s.and_then(r).map_or("-".into(), |r| format!("{r:.2}"));
            (s.map_or("-".into(), |s| interval(s.mae)), r)
        };
        let ((mae, r), (frozen_mae, frozen_r)) = (of(tuned), of(frozen));
        let _ =
            writeln!(text, "  {name:width$} {scans:>6}   {mae:22} {r:>5}   {frozen_mae:22} {frozen_r:>5}");
    };
    for arm in &results.arms {
        line(&arm.name, arm.scans, arm.fine_tuned.as_ref(), arm.frozen.as_ref());
    }
    if let Some(mean) = &results.mean_predictor {
        let flat = Summary { pearson_r: Estimate { value: f64::NAN, ..mean.pearson_r }, ..mean.clone() };
        line("predict the mean", 0.0, Some(&flat), None);
    }
    let _ = writeln!(text, "\n  differences of absolute errors, years (below 0: the first is better)");
    for c in &results.comparisons {
        let name = format!("{} - {}", c.arm, c.with);
        let shown = if c.shown { "shown" } else { "" };
        let _ = writeln!(
            text,
            "  {:10} {name:36} {:22} p {:.4}, corrected {:.4} {shown}",
            outcome(c.outcome),
            interval(c.comparison.difference),
            c.comparison.p,
            c.p_holm
        );
    }
    for (unit, reason) in &results.failed {
        let _ = writeln!(text, "  failed: {unit}: {reason}");
    }
    text
}
