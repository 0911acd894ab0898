//! How well two orders of the same scans agree, with intervals over subjects.
use std::collections::BTreeMap;

use super::{
    bootstrap::{Estimate, resampled},
    statistics::{correlation, ranks},
};

/// One scan that is judged twice.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Whose scan it is.
    pub subject: &'a str,
    /// One judgement.
    pub a: f64,
    /// The other.
    pub b: f64,
}

/// Spearman's correlation of `a` and `b` with its 95 % interval: subjects are drawn with replacement and bring all of
/// their scans. A drawn sample in which either is constant counts as 0.
///
/// # Panics
/// Without a pair.
pub fn spearman(pairs: &[Pair<'_>], seed: u64) -> Estimate {
    over_subjects(pairs, seed, |rows| {
        let of = |f: fn(&Pair) -> f64| ranks(&rows.iter().map(|&i| f(&pairs[i])).collect::<Vec<f64>>());
        correlation(&of(|p| p.a), &of(|p| p.b))
    })
}

/// The same after the ranks of `given` (an age, say) were regressed out of both.
///
/// # Panics
/// Without a pair, or with another number of `given`.
pub fn spearman_given(pairs: &[Pair<'_>], given: &[f64], seed: u64) -> Estimate {
    assert_eq!(pairs.len(), given.len(), "one value for each pair");
    over_subjects(pairs, seed, |rows| {
        let of = |f: &dyn Fn(usize) -> f64| ranks(&rows.iter().map(|&i| f(i)).collect::<Vec<f64>>());
        let (a, b, c) = (of(&|i| pairs[i].a), of(&|i| pairs[i].b), of(&|i| given[i]));
        let (ab, ac, bc) = (correlation(&a, &b), correlation(&a, &c), correlation(&b, &c));
        (ab - ac * bc) / ((1.0 - ac * ac) * (1.0 - bc * bc)).sqrt()
    })
}

fn over_subjects(pairs: &[Pair<'_>], seed: u64, statistic: impl Fn(&[usize]) -> f64 + Sync) -> Estimate {
    assert!(!pairs.is_empty(), "an agreement of nothing");
    let mut subjects: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    pairs.iter().enumerate().for_each(|(i, p)| subjects.entry(p.subject).or_default().push(i));
    let subjects: Vec<Vec<usize>> = subjects.into_values().collect();
    let defined = |r: f64| if r.is_nan() { 0.0 } else { r };
    let drawn = resampled(seed, |random| {
        let rows: Vec<usize> = (0..subjects.len())
            .flat_map(|_| subjects[random.below(subjects.len())].iter().copied())
            .collect();
        defined(statistic(&rows))
    });
    let all: Vec<usize> = (0..pairs.len()).collect();
    Estimate::new(defined(statistic(&all)), drawn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::philox::{Philox, Purpose};

    #[test]
    fn what_a_third_thing_explains_is_taken_out() {
        let mut random = Philox::new(5, Purpose::Test, 0, 0);
        let ages: Vec<f64> = (0..300).map(|_| f64::from(random.normal())).collect();
        let names: Vec<String> = (0..300).map(|i| format!("sub-{i}")).collect();
        let mut noisy = |age: f64| age + 0.3 * f64::from(random.normal());
        let pairs: Vec<Pair> = names
            .iter()
            .zip(&ages)
            .map(|(subject, &age)| Pair { subject, a: noisy(age), b: noisy(age) })
            .collect();
        let (with, without) = (spearman(&pairs, 1), spearman_given(&pairs, &ages, 1));
        assert!(with.value > 0.85 && with.low < with.value && with.value < with.high, "{with:?}");
        assert!(without.low < 0.0 && without.high > 0.0 || without.value.abs() < 0.15, "{without:?}");
    }

    #[test]
    fn the_same_order_agrees_and_a_constant_does_not() {
        let names: Vec<String> = (0..9).map(|i| format!("sub-{i}")).collect();
        let of = |b: fn(f64) -> f64| -> Vec<Pair> {
            (0..9).map(|i| Pair { subject: &names[i], a: i as f64, b: b(i as f64) }).collect()
        };
        assert_eq!(spearman(&of(f64::exp), 0).value, 1.0);
        assert_eq!(spearman(&of(|_| 0.1), 0).value, 0.0);
    }
}
