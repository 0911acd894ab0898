//! Two arms on the same scans: does the difference hold over people, and over trainings?
//!
//! Errors of one person share that person, errors of one training share that training, and folds hold out the same
//! people under every seed. A test that knows of one alone calls the luck of the other a difference. In simulated
//! studies of 60 people, 3 seeds and 5 folds without a difference (`tests/statistics.rs`), flips over subjects find one
//! in 32 % where trainings vary as much as people, a t test over runs in 18 % where they do not vary at all, and both
//! do in up to 9 %. So a third value looks at both at once, and the largest of the three counts: 4 to 6 %.
use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::{
    Error,
    arms::Tested,
    bootstrap::{Cells, Estimate, RESAMPLES},
    statistics::mean,
};
use crate::machine::philox::{Philox, Purpose};

/// What was trained independently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Every fold of every seed.
    SeedAndFold,
    /// A seed: its folds have the pretrained model in common.
    Seed,
}

/// How two arms differ. Each subject counts once, by the mean over their scans.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Comparison {
    /// People in both arms.
    pub subjects: usize,
    /// Their scans, predicted by the same training of both arms: pairs of rows.
    pub pairs: usize,
    /// Rows of either arm without a counterpart; they do not count.
    pub unpaired: usize,
    /// What a run is.
    pub unit: Unit,
    /// Independent trainings.
    pub runs: usize,
    /// Mean of |error of a| - |error of b|, years, with its crossed bootstrap interval over subjects and seeds.
    /// Negative: a is better.
    pub difference: Estimate,
    /// Two-sided sign-flip permutation test over subjects.
    pub p_subjects: f64,
    /// Two-sided Student t test over runs; NaN with fewer than two.
    pub p_runs: f64,
    /// Two-sided t test whose variance is clustered by subject and by run at once; NaN with fewer than two runs.
    pub p_crossed: f64,
    /// The largest of the three: a difference has to hold over people and over trainings. NaN when one is.
    pub p: f64,
}

/// The mean difference of one subject's errors in one training.
struct Cell<'a> {
    subject: &'a str,
    seed: u64,
    run: (u64, usize),
    years: f64,
}

/// Compares the rows that have the same subject, scan, seed and fold in both arms.
///
/// # Errors
/// [`Error::TooFewInCommon`] with fewer than two subjects in both.
pub fn compare(a: &[Tested], b: &[Tested], unit: Unit, seed: u64) -> Result<Comparison, Error> {
    let (a, b) = (errors(a), errors(b));
    let mut differences: BTreeMap<(&str, u64, usize), Vec<f64>> = BTreeMap::new();
    for (&(subject, scan, seed, fold), error) in &a {
        if let Some(other) = b.get(&(subject, scan, seed, fold)) {
            differences.entry((subject, seed, fold)).or_default().push(error - other);
        }
    }
    let pairs: usize = differences.values().map(Vec::len).sum();
    let cells: Vec<Cell<'_>> = differences
        .iter()
        .map(|(&(subject, seed, fold), years)| {
            let run = if unit == Unit::Seed { (seed, 0) } else { (seed, fold) };
            Cell { subject, seed, run, years: mean(years) }
        })
        .collect();
    let subjects = means_by(&cells, |c| c.subject);
    if subjects.len() < 2 {
        return Err(Error::TooFewInCommon { found: subjects.len() });
    }
    let runs = means_by(&cells, |c| c.run);
    let [difference] = Cells::new(cells.iter().map(|c| (c.subject, c.seed, [c.years, 1.0])))
        .estimates(|[sum, cells]| [sum / cells], seed);
    let [p_subjects, p_runs, p_crossed] = [sign_flip(&subjects, seed), student(&runs), crossed(&cells)];
    Ok(Comparison {
        subjects: subjects.len(),
        pairs,
        unpaired: a.len() + b.len() - 2 * pairs,
        unit,
        runs: runs.len(),
        difference,
        p_subjects,
        p_runs,
        p_crossed,
        p: if p_runs.is_nan() { f64::NAN } else { p_subjects.max(p_runs).max(p_crossed) },
    })
}

/// The absolute error of each (subject, scan, seed, fold); the mean where a table says it twice.
fn errors(rows: &[Tested]) -> BTreeMap<(&str, &str, u64, usize), f64> {
    let mut errors: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for r in rows {
        let key = (r.subject.as_str(), r.scan.as_str(), r.seed, r.fold);
        errors.entry(key).or_default().push((r.prediction - r.age).abs());
    }
    errors.into_iter().map(|(key, errors)| (key, mean(&errors))).collect()
}

/// The mean over the cells of each key.
fn means_by<'a, K: Ord>(cells: &[Cell<'a>], key: impl Fn(&Cell<'a>) -> K) -> Vec<f64> {
    let mut by: BTreeMap<K, Vec<f64>> = BTreeMap::new();
    cells.iter().for_each(|c| by.entry(key(c)).or_default().push(c.years));
    by.values().map(|years| mean(years)).collect()
}

/// Two-sided p of the mean of `differences` being 0 when each is as likely to have the other sign (Fisher's
/// randomisation test for pairs): the share of sign patterns whose mean is as far from 0 or further, of all patterns
/// when there are no more than [`RESAMPLES`], else (1 + k) / (1 + [`RESAMPLES`]) of random ones (Phipson and Smyth 2010).
pub fn sign_flip(differences: &[f64], seed: u64) -> f64 {
    // Patterns that give the observed mean in another order of adding count.
    let least =
        differences.iter().sum::<f64>().abs() - 1e-12 * differences.iter().map(|d| d.abs()).sum::<f64>();
    let as_far = |is_flipped: &mut dyn FnMut(usize) -> bool| {
        let signed = differences.iter().enumerate().map(|(i, d)| if is_flipped(i) { -d } else { *d });
        signed.sum::<f64>().abs() >= least
    };
    let patterns = u32::try_from(differences.len()).ok().and_then(|n| 1_usize.checked_shl(n));
    if let Some(patterns) = patterns.filter(|&patterns| patterns <= RESAMPLES) {
        let far = (0..patterns).filter(|pattern| as_far(&mut |i| pattern >> i & 1 == 1)).count();
        return far as f64 / patterns as f64;
    }
    let far = (0..RESAMPLES).into_par_iter().filter(|&flip| {
        // Sample 1: apart from the bootstrap of the same seed.
        let mut random = Philox::new(seed, Purpose::Bootstrap, flip as u64, 1);
        let mut word = 0;
        as_far(&mut |i| {
            word = if i % 32 == 0 { random.word() } else { word >> 1 };
            word & 1 == 1
        })
    });
    (1 + far.count()) as f64 / (1 + RESAMPLES) as f64
}

/// Two-sided p of Student's one-sample t test of the mean of `values` being 0; NaN with fewer than two.
pub fn student(values: &[f64]) -> f64 {
    let (n, mean) = (values.len() as f64, mean(values));
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0) / n;
    two_sided(mean, variance, n - 1.0)
}

/// Two-sided p of t = `mean` / √`variance`.
fn two_sided(mean: f64, variance: f64, freedom: f64) -> f64 {
    match StudentsT::new(0.0, 1.0, freedom) {
        // No difference at all, however well it is known.
        Ok(_) if mean == 0.0 => 1.0,
        Ok(t) => 2.0 * t.sf(mean.abs() / variance.sqrt()),
        Err(_) => f64::NAN,
    }
}

/// Two-sided p of the mean over seeds being 0, by the variance that allows for subjects and runs at once: clustered by
/// subject + clustered by run - by cell (Cameron, Gelbach and Miller 2011, J. Business & Economic Statistics 29:238),
/// but no less than either, and as many degrees of freedom as the rarer of the two has, less one.
fn crossed(cells: &[Cell<'_>]) -> f64 {
    let mut in_seed: BTreeMap<u64, f64> = BTreeMap::new();
    cells.iter().for_each(|c| *in_seed.entry(c.seed).or_default() += 1.0);
    let weight = |c: &Cell<'_>| 1.0 / (in_seed.len() as f64 * in_seed[&c.seed]);
    let mean: f64 = cells.iter().map(|c| weight(c) * c.years).sum();
    let shares: Vec<f64> = cells.iter().map(|c| weight(c) * (c.years - mean)).collect();
    let clustered = |of: &dyn Fn(usize) -> usize| {
        let mut sums: BTreeMap<usize, f64> = BTreeMap::new();
        shares.iter().enumerate().for_each(|(i, share)| *sums.entry(of(i)).or_default() += share);
        let n = sums.len() as f64;
        (n, sums.values().map(|s| s * s).sum::<f64>() * n / (n - 1.0))
    };
    let subjects: Vec<&str> = cells.iter().map(|c| c.subject).collect::<BTreeSet<_>>().into_iter().collect();
    let runs: Vec<(u64, usize)> = cells.iter().map(|c| c.run).collect::<BTreeSet<_>>().into_iter().collect();
    let (n, by_subject) = clustered(&|i| subjects.partition_point(|s| *s < cells[i].subject));
    let (r, by_run) = clustered(&|i| runs.partition_point(|run| *run < cells[i].run));
    let (_, by_cell) = clustered(&|i| i);
    two_sided(mean, (by_subject + by_run - by_cell).max(by_subject).max(by_run), n.min(r) - 1.0)
}

/// P values adjusted for how many there are, so that with a limit of 0.05 any false difference among all of them is
/// found in no more than 5 % of studies (Holm 1979): in ascending order the i-th of m becomes (m - i + 1) p, no less
/// than those before it and no more than 1. NaN stays NaN and is not counted.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).filter(|&i| !p[i].is_nan()).collect();
    order.sort_by(|&i, &j| p[i].total_cmp(&p[j]));
    let mut adjusted = vec![f64::NAN; p.len()];
    let mut least = 0.0_f64;
    for (before, &i) in order.iter().enumerate() {
        least = least.max((p[i] * (order.len() - before) as f64).min(1.0));
        adjusted[i] = least;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(subject: &str, scan: &str, error: f64, seed: u64, fold: usize) -> Tested {
        let (subject, scan) = (subject.to_owned(), scan.to_owned());
        Tested { subject, scan, age: 50.0, prediction: 50.0 + error, seed, fold }
    }

    #[test]
    fn only_pairs_count_and_each_subject_once() {
        let a = [row("a", "1", 5.0, 0, 0), row("a", "2", -3.0, 0, 0), row("b", "1", 1.0, 0, 1)];
        let b = [
            row("a", "1", 1.0, 0, 0),
            row("a", "2", 1.0, 0, 0),
            row("b", "1", 2.0, 0, 1),
            row("c", "1", 9.0, 0, 1),
        ];
        let c = compare(&a, &b, Unit::SeedAndFold, 0).unwrap();
        // a: (4 + 2) / 2 = 3, b: -1
        assert_eq!((c.subjects, c.pairs, c.unpaired, c.runs, c.difference.value), (2, 3, 1, 2, 1.0));
        assert_eq!(c.p_subjects, 1.0);
        let by_seed = compare(&a, &b, Unit::Seed, 0).unwrap();
        assert!(by_seed.p_runs.is_nan() && by_seed.p.is_nan() && by_seed.p_subjects == 1.0);
        assert!(compare(&a, &b[3..], Unit::Seed, 0).is_err());
    }

    #[test]
    fn an_arm_does_not_differ_from_itself() {
        let a: Vec<Tested> = (0..60)
            .map(|i| row(&format!("{}", i / 3), "1", f64::from(i % 7), (i % 3) as u64, i as usize / 3 % 5))
            .collect();
        let c = compare(&a, &a, Unit::SeedAndFold, 0).unwrap();
        assert_eq!([c.p_subjects, c.p_runs, c.p_crossed, c.p], [1.0; 4]);
        assert_eq!(c.difference, Estimate { value: 0.0, low: 0.0, high: 0.0 });
    }

    #[test]
    fn few_signs_are_enumerated() {
        assert_eq!(sign_flip(&[1.0, 2.0, 3.0], 0), 2.0 / 8.0);
        assert_eq!(sign_flip(&[1.0; 13], 0), 2.0 / 8192.0);
        assert_eq!(sign_flip(&[1.0; 100], 0), 1.0 / 10_001.0);
    }

    #[test]
    fn what_is_unknown_is_not_counted() {
        let adjusted = holm(&[0.02, f64::NAN, 0.01, 0.9]);
        assert!(adjusted[1].is_nan());
        assert_eq!([adjusted[0], adjusted[2], adjusted[3]], [0.04, 0.03, 0.9]);
    }
}
