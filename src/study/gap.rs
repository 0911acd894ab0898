//! The brain-age gap, raw and corrected for its dependence on age, and what it goes with.
//!
//! A gap (prediction - age) falls with age, as predictions shrink towards the mean. Corrections take that out; they are
//! for comparing gaps between people and never for accuracy, which they inflate (Butler et al. 2021, de Lange and Cole
//! 2020). They are fitted without the people they are applied to.
use std::collections::{BTreeMap, BTreeSet};

use super::{
    Error,
    agreement::{Pair, spearman_given},
    arms::Tested,
    bootstrap::{Cells, Estimate, mean_over_subjects},
    statistics::{mean, sum_of_products},
};

/// A slope of prediction on age below this is not inverted.
const LEAST_SLOPE: f64 = 0.1;

/// What is done to gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Correction {
    /// Nothing: prediction - age.
    None,
    /// With prediction = a age + b fitted: (prediction - b) / a - age (Cole et al. 2018, Molecular Psychiatry 23:1385).
    Cole,
    /// With gap = a age + b fitted: gap - (a age + b) (Beheshti et al. 2019, NeuroImage: Clinical 24:102063; de Lange
    /// and Cole 2020, NeuroImage: Clinical 26:102229). It uses the age itself.
    Beheshti,
}

/// The gap of one scan, the mean over the trainings that predicted it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Gap {
    /// Who.
    pub subject: String,
    /// Which of their scans.
    pub scan: String,
    /// Age at the scan, years.
    pub age: f64,
    /// Prediction - age as corrected, years.
    pub gap: f64,
}

/// The ages of one scan in all trainings, and its gaps.
type AgesAndGaps = (Vec<f64>, Vec<f64>);

/// The gaps of all scans in the order of subjects and scans. The predictions of a fold are corrected by a line through
/// the held-out predictions of all other folds of the same seed, without those of its own people.
///
/// # Errors
/// [`Error::Calibration`] when a fold has no others to be corrected by, these are all of one age, or for
/// [`Correction::Cole`] their slope is below 0.1.
pub fn gaps(rows: &[Tested], correction: Correction) -> Result<Vec<Gap>, Error> {
    let mut parts: BTreeMap<(u64, usize), Vec<&Tested>> = BTreeMap::new();
    rows.iter().for_each(|row| parts.entry((row.seed, row.fold)).or_default().push(row));
    let mut scans: BTreeMap<(&str, &str), AgesAndGaps> = BTreeMap::new();
    for (&(seed, fold), part) in &parts {
        let (a, b) = match correction {
            Correction::None => (1.0, 0.0),
            _ => {
                let people: BTreeSet<&str> = part.iter().map(|r| r.subject.as_str()).collect();
                let others = parts.range((seed, 0)..=(seed, usize::MAX)).filter(|((_, f), _)| *f != fold);
                let others = others.flat_map(|(_, part)| part.iter());
                let (ages, predictions): (Vec<f64>, Vec<f64>) = others
                    .filter(|r| !people.contains(r.subject.as_str()))
                    .map(|r| (r.age, r.prediction))
                    .unzip();
                calibrated(&ages, &predictions, correction).map_err(|problem| Error::Calibration {
                    seed,
                    fold,
                    problem,
                })?
            }
        };
        for row in part {
            let years = match correction {
                Correction::Cole => (row.prediction - b) / a - row.age,
                // The line of the gap has the slope a - 1 and the same b.
                Correction::None | Correction::Beheshti => row.prediction - (a * row.age + b),
            };
            let (ages, gaps) = scans.entry((&row.subject, &row.scan)).or_default();
            ages.push(row.age);
            gaps.push(years);
        }
    }
    let gap = |((subject, scan), (ages, gaps)): ((&str, &str), AgesAndGaps)| Gap {
        subject: subject.into(),
        scan: scan.into(),
        age: mean(&ages),
        gap: mean(&gaps),
    };
    Ok(scans.into_iter().map(gap).collect())
}

/// The least-squares line (a, b) of prediction = a age + b.
fn calibrated(ages: &[f64], predictions: &[f64], correction: Correction) -> Result<(f64, f64), String> {
    let deviations = sum_of_products(ages, ages);
    if ages.is_empty() || deviations <= 0.0 {
        return Err(format!("{} predictions of other people, of fewer than two ages", ages.len()));
    }
    let a = sum_of_products(ages, predictions) / deviations;
    if correction == Correction::Cole && a < LEAST_SLOPE {
        return Err(format!("predictions rise by {a:.3} a year of age, which is too little to be inverted"));
    }
    Ok((a, mean(predictions) - a * mean(ages)))
}

/// One scan with its gap and what its quality was measured to be.
#[derive(Clone, Copy, Debug)]
pub struct Measured<'a> {
    /// Who.
    pub subject: &'a str,
    /// Age at the scan, years.
    pub age: f64,
    /// The gap, years.
    pub gap: f64,
    /// The scan's quality.
    pub quality: f64,
}

/// How gaps go with quality among people of the same age; intervals are over subjects.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Dependence {
    /// Different people.
    pub subjects: usize,
    /// Their scans.
    pub scans: usize,
    /// Years of gap for a standard deviation of quality (of all scans, over n - 1), by least squares on quality, age
    /// and a constant.
    pub slope: Estimate,
    /// Spearman's correlation of gap and quality, given age.
    pub spearman: Estimate,
}

/// How gaps go with quality, given age; `seed` is that of the bootstrap. Slope and interval are NaN where quality is a
/// function of age.
///
/// # Panics
/// Without a scan.
pub fn dependence(scans: &[Measured<'_>], seed: u64) -> Dependence {
    let of = |f: fn(&Measured<'_>) -> f64| scans.iter().map(f).collect::<Vec<f64>>();
    let (ages, qualities) = (of(|s| s.age), of(|s| s.quality));
    let (middle_age, middle) = (mean(&ages), mean(&qualities));
    let sd = (sum_of_products(&qualities, &qualities) / (scans.len() as f64 - 1.0)).sqrt();
    let cells = Cells::new(scans.iter().map(|s| {
        let (q, a, g) = ((s.quality - middle) / sd, s.age - middle_age, s.gap);
        (s.subject, 0, [1.0, q, a, g, q * q, a * a, q * a, q * g, a * g])
    }));
    // The partial slope, from the sums of products about the means.
    let slope = |[n, q, a, g, qq, aa, qa, qg, ag]: [f64; 9]| {
        let [sqq, saa] = [qq - q * q / n, aa - a * a / n];
        let [sqa, sqg, sag] = [qa - q * a / n, qg - q * g / n, ag - a * g / n];
        let determinant = sqq * saa - sqa * sqa;
        [if determinant > 1e-9 * qq * aa { (sqg * saa - sag * sqa) / determinant } else { f64::NAN }]
    };
    let [slope] = cells.estimates(slope, seed);
    let pairs: Vec<Pair<'_>> =
        scans.iter().map(|s| Pair { subject: s.subject, a: s.gap, b: s.quality }).collect();
    Dependence {
        subjects: scans.iter().map(|s| s.subject).collect::<BTreeSet<_>>().len(),
        scans: scans.len(),
        slope,
        spearman: spearman_given(&pairs, &ages, seed),
    }
}

/// The gaps of one group, say one diagnosis.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Different people.
    pub subjects: usize,
    /// Their scans.
    pub scans: usize,
    /// The mean gap over scans, years, with its interval over subjects.
    pub gap: Estimate,
}

/// The mean gap of each group, in the order of their names; `scans` = (group, subject, gap).
pub fn by_group(scans: &[(&str, &str, f64)], seed: u64) -> Vec<Group> {
    let mut groups: BTreeMap<&str, Vec<(&str, f64)>> = BTreeMap::new();
    scans.iter().for_each(|&(group, subject, gap)| groups.entry(group).or_default().push((subject, gap)));
    let group = |(name, gaps): (&str, Vec<(&str, f64)>)| Group {
        name: name.into(),
        subjects: gaps.iter().map(|(subject, _)| subject).collect::<BTreeSet<_>>().len(),
        scans: gaps.len(),
        gap: mean_over_subjects(gaps, seed),
    };
    groups.into_iter().map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    /// Predictions of each fold on a line of its own, so that only the other fold's line shows.
    fn rows() -> Vec<Tested> {
        let row = |i: usize, fold: usize| {
            let age = 20.0 + 5.0 * i as f64;
            let prediction = if fold == 0 { 0.5 * age + 20.0 } else { 0.8 * age + 10.0 };
            Tested { subject: format!("{fold}-{i}"), scan: "1".into(), age, prediction, seed: 0, fold }
        };
        (0..6).map(|i| row(i, 0)).chain((0..6).map(|i| row(i, 1))).collect()
    }

    #[test]
    fn a_fold_is_corrected_by_the_line_of_the_others() {
        let rows = rows();
        let first = |correction| gaps(&rows, correction).unwrap()[0].gap;
        // Age 20, prediction 30; the other fold's line has a = 0.8 and b = 10.
        assert_relative_eq!(first(Correction::None), 10.0, epsilon = 1e-12);
        assert_relative_eq!(first(Correction::Cole), (30.0 - 10.0) / 0.8 - 20.0, epsilon = 1e-12);
        assert_relative_eq!(first(Correction::Beheshti), 30.0 - 26.0, epsilon = 1e-12);
    }

    #[test]
    fn a_correction_is_never_fitted_to_its_own_people() {
        let mut rows = rows();
        let away = |rows: &[Tested]| gaps(rows, Correction::Beheshti).unwrap()[0].gap;
        let before = away(&rows);
        // The first person once more, in the other fold and far off.
        rows.push(Tested { scan: "2".into(), prediction: 900.0, fold: 1, ..rows[0].clone() });
        assert_eq!(away(&rows), before);
    }

    #[test]
    fn flat_predictions_and_one_fold_are_refused() {
        let mut flat = rows();
        flat.iter_mut().for_each(|r| r.prediction = 50.0 + 0.01 * r.age);
        let error = gaps(&flat, Correction::Cole).unwrap_err().to_string();
        assert_eq!(
            error,
            "seed 0, fold 0: the gap cannot be corrected: predictions rise by 0.010 a year of age, which is too \
             little to be inverted"
        );
        assert!(gaps(&flat, Correction::Beheshti).is_ok());
        assert!(
            gaps(&flat[..6], Correction::Beheshti).is_err() && gaps(&flat[..6], Correction::None).is_ok()
        );
    }

    #[test]
    fn groups_have_means_of_their_own() {
        let groups = by_group(&[("b", "x", 1.0), ("a", "y", 2.0), ("b", "x", 3.0), ("b", "z", 5.0)], 0);
        let told: Vec<_> =
            groups.iter().map(|g| (g.name.as_str(), g.subjects, g.scans, g.gap.value)).collect();
        assert_eq!(told, [("a", 1, 1, 2.0), ("b", 2, 3, 3.0)]);
    }
}
