//! Confidence intervals by resampling whole subjects: scans of one person are not independent.
use std::collections::BTreeMap;

use rayon::prelude::*;

use super::statistics::quantile;
use crate::machine::philox::{Philox, Purpose};

/// How often the subjects are resampled.
pub const RESAMPLES: usize = 10_000;

/// A mean over scans with its 95 % interval over subjects.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// The lower end: the 2.5th percentile of the resampled means.
    pub low: f64,
    /// The upper end: the 97.5th percentile.
    pub high: f64,
}

/// The mean of `values` = (subject, value of one scan), with the percentile interval of a cluster bootstrap
/// (Efron and Tibshirani 1993, chapter 13): each resample draws as many subjects as there are, with replacement,
/// and a drawn subject brings all of its scans. One `seed` gives the same answer on any number of threads.
///
/// # Panics
/// When `values` is empty.
pub fn mean_over_subjects<'a>(values: impl IntoIterator<Item = (&'a str, f64)>, seed: u64) -> Estimate {
    let mut subjects: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (subject, value) in values {
        let (sum, scans) = subjects.entry(subject).or_default();
        *sum += value;
        *scans += 1.0;
    }
    let subjects: Vec<(f64, f64)> = subjects.into_values().collect();
    assert!(!subjects.is_empty(), "a mean over no subjects");
    let add = |(sum, scans): (f64, f64), s: &(f64, f64)| (sum + s.0, scans + s.1);
    let mean = |(sum, scans): (f64, f64)| sum / scans;
    let mut means: Vec<f64> = (0..RESAMPLES)
        .into_par_iter()
        .map(|resample| {
            let mut random = Philox::new(seed, Purpose::Bootstrap, resample as u64, 0);
            mean(
                (0..subjects.len())
                    .fold((0.0, 0.0), |total, _| add(total, &subjects[random.below(subjects.len())])),
            )
        })
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    let value = mean(subjects.iter().fold((0.0, 0.0), add));
    Estimate { value, low: quantile(&means, 0.025), high: quantile(&means, 0.975) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_independent_values_is_the_normal_one() {
        let mut random = Philox::new(3, Purpose::Test, 0, 0);
        let x: Vec<f64> = (0..400).map(|_| f64::from(random.normal())).collect();
        let names: Vec<String> = (0..400).map(|i| format!("sub-{i}")).collect();
        let estimate = mean_over_subjects(names.iter().map(String::as_str).zip(x.iter().copied()), 1);
        let mean = x.iter().sum::<f64>() / 400.0;
        let standard_error = (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 400.0 / 400.0).sqrt();
        approx::assert_relative_eq!(estimate.value, mean, epsilon = 1e-12);
        approx::assert_relative_eq!(
            estimate.low,
            mean - 1.96 * standard_error,
            epsilon = 0.06 * standard_error
        );
        approx::assert_relative_eq!(
            estimate.high,
            mean + 1.96 * standard_error,
            epsilon = 0.06 * standard_error
        );
    }

    #[test]
    fn repeated_scans_of_a_subject_do_not_narrow_the_interval() {
        let names: Vec<String> = (0..30).map(|i| format!("sub-{i}")).collect();
        let once: Vec<(&str, f64)> =
            names.iter().enumerate().map(|(i, n)| (n.as_str(), (i * i % 17) as f64)).collect();
        let five_times: Vec<(&str, f64)> = once.iter().flat_map(|&v| [v; 5]).collect();
        assert_eq!(mean_over_subjects(once, 7), mean_over_subjects(five_times, 7));
    }
}
