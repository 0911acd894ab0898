//! Confidence intervals by resampling whole subjects, as scans of one person are not independent, and training seeds
//! beside them, as predictions of one training are not either.
use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::statistics::quantile;
use crate::machine::philox::{Philox, Purpose};

/// How often the subjects are resampled.
pub const RESAMPLES: usize = 10_000;

/// A statistic with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// The statistic of all that was observed.
    pub value: f64,
    /// The lower end: the 2.5th percentile of the resampled statistics.
    pub low: f64,
    /// The upper end: the 97.5th percentile.
    pub high: f64,
}

impl Estimate {
    /// `value` with the percentile interval of what resampling drew. Draws without a value (NaN), such as a correlation
    /// of equal ages, are left out.
    pub(super) fn new(value: f64, mut drawn: Vec<f64>) -> Estimate {
        drawn.retain(|d| !d.is_nan());
        drawn.sort_unstable_by(f64::total_cmp);
        let at = |q| if drawn.is_empty() { f64::NAN } else { quantile(&drawn, q) };
        Estimate { value, low: at(0.025), high: at(0.975) }
    }
}

/// What `draw` gives for [`RESAMPLES`] streams of random numbers; one `seed` gives the same on any number of threads.
pub(super) fn resampled<T: Send>(seed: u64, draw: impl Fn(&mut Philox) -> T + Sync) -> Vec<T> {
    let one = |resample| draw(&mut Philox::new(seed, Purpose::Bootstrap, resample as u64, 0));
    (0..RESAMPLES).into_par_iter().map(one).collect()
}

/// The mean of `values` = (subject, value of one scan), with the percentile interval of a cluster bootstrap
/// (Efron and Tibshirani 1993, chapter 13): each resample draws as many subjects as there are, with replacement,
/// and a drawn subject brings all of its scans. One `seed` gives the same answer on any number of threads.
///
/// # Panics
/// When `values` is empty.
pub fn mean_over_subjects<'a>(values: impl IntoIterator<Item = (&'a str, f64)>, seed: u64) -> Estimate {
    let rows = values.into_iter().map(|(subject, value)| (subject, 0, [value, 1.0]));
    let [mean] = Cells::new(rows).estimates(|[sum, scans]| [sum / scans], seed);
    mean
}

/// `K` sums over the scans of each subject, by the seed of the training that predicted them. Statistics that are
/// functions of sums are resampled from these, which costs the same however many scans there are.
pub(super) struct Cells<const K: usize> {
    seeds: usize,
    /// `[subjects, seeds]`
    sums: Vec<[f64; K]>,
}

impl<const K: usize> Cells<K> {
    /// Of `rows` = (subject, seed, what one scan adds to the sums).
    ///
    /// # Panics
    /// Without a row.
    pub(super) fn new<'a>(rows: impl IntoIterator<Item = (&'a str, u64, [f64; K])>) -> Self {
        let mut cells: BTreeMap<&str, BTreeMap<u64, [f64; K]>> = BTreeMap::new();
        for (subject, seed, values) in rows {
            add(cells.entry(subject).or_default().entry(seed).or_insert([0.0; K]), &values);
        }
        assert!(!cells.is_empty(), "a statistic of no subjects");
        let seeds: BTreeSet<u64> = cells.values().flat_map(BTreeMap::keys).copied().collect();
        let of = |subject: &BTreeMap<u64, [f64; K]>| -> Vec<[f64; K]> {
            seeds.iter().map(|seed| subject.get(seed).copied().unwrap_or([0.0; K])).collect()
        };
        Cells { seeds: seeds.len(), sums: cells.values().flat_map(of).collect() }
    }

    /// `statistics` of the sums over all subjects, for each seed.
    pub(super) fn by_seed<const M: usize>(&self, statistics: impl Fn([f64; K]) -> [f64; M]) -> Vec<[f64; M]> {
        self.total(0..self.sums.len() / self.seeds).into_iter().map(statistics).collect()
    }

    /// The mean over seeds of each of `statistics`, with the percentile interval of a crossed ("pigeonhole") bootstrap
    /// (Owen 2007, Annals of Applied Statistics 1:386): each resample draws as many subjects as there are and as many
    /// seeds as there are, both with replacement, and takes each drawn subject under each drawn seed. With few seeds
    /// the interval is somewhat too narrow, by a factor of up to √((S - 1) / S) where seeds vary more than subjects;
    /// with one it is over subjects alone.
    pub(super) fn estimates<const M: usize>(
        &self,
        statistics: impl Fn([f64; K]) -> [f64; M] + Sync,
        seed: u64,
    ) -> [Estimate; M] {
        let subjects = self.sums.len() / self.seeds;
        let all = self.by_seed(&statistics);
        let drawn = resampled(seed, |random| {
            let total = self.total((0..subjects).map(|_| random.below(subjects)));
            let by_seed: Vec<[f64; M]> = total.into_iter().map(&statistics).collect();
            match self.seeds {
                1 => by_seed[0],
                seeds => mean((0..seeds).map(|_| by_seed[random.below(seeds)])),
            }
        });
        let value = mean(all.into_iter());
        std::array::from_fn(|m| Estimate::new(value[m], drawn.iter().map(|d| d[m]).collect()))
    }

    fn total(&self, subjects: impl Iterator<Item = usize>) -> Vec<[f64; K]> {
        let mut total = vec![[0.0; K]; self.seeds];
        for subject in subjects {
            let sums = &self.sums[subject * self.seeds..][..self.seeds];
            total.iter_mut().zip(sums).for_each(|(total, sums)| add(total, sums));
        }
        total
    }
}

fn add<const K: usize>(total: &mut [f64; K], values: &[f64; K]) {
    total.iter_mut().zip(values).for_each(|(t, v)| *t += v);
}

fn mean<const M: usize>(values: impl ExactSizeIterator<Item = [f64; M]>) -> [f64; M] {
    let n = values.len() as f64;
    let mut total = [0.0; M];
    values.for_each(|v| add(&mut total, &v));
    total.map(|t| t / n)
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
