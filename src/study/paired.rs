//! Two models on the same people.
use std::collections::BTreeMap;

use super::{
    Error,
    age_metrics::Row,
    bootstrap::{Estimate, mean_over_subjects},
};

/// Two tables of predictions compared on the subjects they share; each subject counts once.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Comparison {
    /// Subjects in both tables.
    pub subjects: usize,
    /// Mean over those subjects of (absolute error of the first - absolute error of the second), years. Negative:
    /// the first is better; an interval without 0: more than chance.
    pub difference: Estimate,
}

/// Compares two tables. A subject's error is the mean absolute error over its scans, so tables that list different
/// scans of the same people can be compared, too.
///
/// # Errors
/// [`Error::TooFewInCommon`] with fewer than two subjects in both.
pub fn compare(first: &[Row], second: &[Row], seed: u64) -> Result<Comparison, Error> {
    let (first, second) = (errors(first), errors(second));
    let differences: Vec<(&str, f64)> =
        first.iter().filter_map(|(subject, a)| second.get(subject).map(|b| (*subject, a - b))).collect();
    if differences.len() < 2 {
        return Err(Error::TooFewInCommon { found: differences.len() });
    }
    let subjects = differences.len();
    Ok(Comparison { subjects, difference: mean_over_subjects(differences, seed) })
}

/// Each subject's mean absolute error.
fn errors(rows: &[Row]) -> BTreeMap<&str, f64> {
    let mut by_subject: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for row in rows {
        by_subject.entry(&row.subject).or_default().push((row.prediction - row.age).abs());
    }
    by_subject.into_iter().map(|(subject, e)| (subject, e.iter().sum::<f64>() / e.len() as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(subject: &str, age: f64, prediction: f64) -> Row {
        Row { subject: subject.into(), age, prediction }
    }

    #[test]
    fn only_shared_subjects_count_and_each_counts_once() {
        let first = [row("a", 50.0, 51.0), row("a", 50.0, 47.0), row("b", 60.0, 64.0), row("c", 70.0, 0.0)];
        let second = [row("b", 60.0, 59.0), row("a", 50.0, 55.0), row("d", 70.0, 0.0)];
        let c = compare(&first, &second, 0).unwrap();
        // a: (1 + 3) / 2 - 5 = -3, b: 4 - 1 = 3
        assert_eq!((c.subjects, c.difference), (2, Estimate { value: 0.0, low: -3.0, high: 3.0 }));
    }

    #[test]
    fn strangers_cannot_be_compared() {
        let error = compare(&[row("a", 50.0, 51.0)], &[row("b", 50.0, 51.0)], 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "0 subject(s) with a known age in both tables; a paired comparison needs at least 2"
        );
    }
}
