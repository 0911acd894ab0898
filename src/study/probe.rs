//! What a linear probe reads out of a model's features: age, and what had better not be in them (the site, the quality
//! of the scan).
//!
//! The probe is ridge regression on features standardised by the training part, whose penalty is the one with the
//! least leave-one-out error on the training part.
use std::collections::{BTreeMap, BTreeSet};

use super::{
    agreement::{Pair, spearman},
    bootstrap::{Cells, Estimate},
    statistics::{deviations, mean},
};
use crate::machine::{
    Mat,
    philox::{Philox, Purpose},
    ridge::{Ridge, product},
};

/// Ridge penalties that are tried, as shares of the mean squared length of the standardised features.
const PENALTIES: [f64; 10] = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 30.0];

/// How often labels are permuted.
const PERMUTATIONS: usize = 200;

/// Whose scan a row of features is, and the fold that holds it out.
#[derive(Clone, Copy, Debug)]
pub struct HeldOut<'a> {
    /// Who.
    pub subject: &'a str,
    /// The fold; all scans of a subject are in one.
    pub fold: usize,
}

/// The ages that a probe fitted to `train` `[n, d]` and `ages` `[n]` says of `test` `[t, d]`.
///
/// # Panics
/// When shapes do not fit or there is nothing to learn from.
pub fn predict_age(train: Mat<'_, f32>, ages: &[f64], test: Mat<'_, f32>) -> Vec<f64> {
    let rows = |m: Mat<'_, f32>| (0..m.shape()[0]).collect::<Vec<usize>>();
    let (train_rows, test_rows) = (rows(train), rows(test));
    Standardised::new(train, &train_rows).predictions(ages, 1, 1, test, &test_rows)
}

/// How well a class, the site say, can be told from features of people that the probe has not seen.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct OfClass {
    /// Different classes.
    pub classes: usize,
    /// Scans.
    pub scans: usize,
    /// The mean over classes of the share of its scans that is told right.
    pub balanced_accuracy: f64,
    /// The same with permuted labels: mean, 2.5th and 97.5th percentile. With few subjects the mean is below
    /// 1 / classes: a class that a fold has more of, its training part has less of.
    pub chance: Estimate,
    /// The share of permutations that are told as well or better, (1 + k) / (1 + 200).
    pub p: f64,
}

/// Cross-validated accuracy of a classifier of one ridge regression a class (1 for its scans, -1 for others), whose
/// largest output is taken, as scikit-learn's `RidgeClassifierCV`; one penalty for all classes. Labels are permuted 200
/// times over subjects, or over scans where a subject has several labels, and everything is fitted again each time.
///
/// # Panics
/// When lengths do not fit, a subject is in two folds, or there are fewer than two folds or two classes.
pub fn predictability_of_class(
    features: Mat<'_, f32>,
    labels: &[&str],
    held_out: &[HeldOut<'_>],
    seed: u64,
) -> OfClass {
    assert_eq!(labels.len(), held_out.len(), "a label for each row");
    let names: Vec<&str> = labels.iter().copied().collect::<BTreeSet<&str>>().into_iter().collect();
    let classes = names.len();
    assert!(classes > 1, "one class cannot be told from another");
    let label: Vec<usize> = labels.iter().map(|label| names.partition_point(|name| name < label)).collect();

    let units = units(&label, held_out);
    let mut labelings = vec![label.clone()];
    labelings.extend((0..PERMUTATIONS).map(|permutation| {
        // Sample 2: apart from other draws of the same seed.
        let mut random = Philox::new(seed, Purpose::Bootstrap, permutation as u64, 2);
        let mut of_unit: Vec<usize> = units.iter().map(|rows| label[rows[0]]).collect();
        random.shuffle(&mut of_unit);
        let mut permuted = label.clone();
        units.iter().zip(of_unit).for_each(|(rows, l)| rows.iter().for_each(|&i| permuted[i] = l));
        permuted
    }));
    let is = |i: usize, labeling: &Vec<usize>, class| if labeling[i] == class { 1.0 } else { -1.0 };
    let targets: Vec<f64> = (0..label.len())
        .flat_map(|i| labelings.iter().flat_map(move |l| (0..classes).map(move |class| is(i, l, class))))
        .collect();
    let outputs = cross_validated(features, &targets, labelings.len(), classes, held_out);

    let accuracies = labelings.iter().enumerate().map(|(at, labeling)| {
        let (mut right, mut all) = (vec![0.0; classes], vec![0.0; classes]);
        for (i, &class) in labeling.iter().enumerate() {
            let outputs = &outputs[(i * labelings.len() + at) * classes..][..classes];
            let told = (0..classes).max_by(|&a, &b| outputs[a].total_cmp(&outputs[b]));
            all[class] += 1.0;
            right[class] += f64::from(u8::from(told == Some(class)));
        }
        let recalls: Vec<f64> =
            right.iter().zip(&all).filter(|(_, all)| **all > 0.0).map(|(r, all)| r / all).collect();
        mean(&recalls)
    });
    let accuracies: Vec<f64> = accuracies.collect();
    let (balanced_accuracy, permuted) = (accuracies[0], &accuracies[1..]);
    let as_well = permuted.iter().filter(|p| **p >= balanced_accuracy - 1e-12).count();
    OfClass {
        classes,
        scans: label.len(),
        balanced_accuracy,
        chance: Estimate::new(mean(permuted), permuted.to_vec()),
        p: (1 + as_well) as f64 / (1 + PERMUTATIONS) as f64,
    }
}

/// The rows that have a label in common: those of a subject, or where one has several labels each row alone.
fn units(label: &[usize], held_out: &[HeldOut<'_>]) -> Vec<Vec<usize>> {
    let mut rows: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    held_out.iter().enumerate().for_each(|(i, h)| rows.entry(h.subject).or_default().push(i));
    match rows.values().all(|rows| rows.iter().all(|&i| label[i] == label[rows[0]])) {
        true => rows.into_values().collect(),
        false => (0..label.len()).map(|i| vec![i]).collect(),
    }
}

/// How well a number, a scan's quality say, can be told from features of people that the probe has not seen.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct OfNumber {
    /// Scans.
    pub scans: usize,
    /// 1 - SS_res / SS_tot over all scans, with its interval over subjects; 0 and below: not at all.
    pub r2: Estimate,
    /// Spearman's correlation of the number and its prediction.
    pub spearman: Estimate,
}

/// Cross-validated prediction of `values` by ridge regression.
///
/// # Panics
/// When lengths do not fit, a subject is in two folds, or there are fewer than two folds.
pub fn predictability_of_number(
    features: Mat<'_, f32>,
    values: &[f64],
    held_out: &[HeldOut<'_>],
    seed: u64,
) -> OfNumber {
    assert_eq!(values.len(), held_out.len(), "a value for each row");
    let told = cross_validated(features, values, 1, 1, held_out);
    let middle = mean(values);
    let rows = || held_out.iter().zip(values).zip(&told).map(|((h, value), told)| (h.subject, *value, *told));
    let cells = Cells::new(rows().map(|(subject, value, told)| {
        let x = value - middle;
        (subject, 0, [1.0, x, x * x, (value - told).powi(2)])
    }));
    let [r2] = cells.estimates(|[n, x, xx, squares]| [1.0 - squares / deviations(n, x, xx)], seed);
    let pairs: Vec<Pair<'_>> = rows().map(|(subject, a, b)| Pair { subject, a, b }).collect();
    OfNumber { scans: values.len(), r2, spearman: spearman(&pairs, seed) }
}

/// Predictions of `targets` `[n, problems, outputs]` by the fits that each row's fold is held out of.
fn cross_validated(
    features: Mat<'_, f32>,
    targets: &[f64],
    problems: usize,
    outputs: usize,
    held_out: &[HeldOut<'_>],
) -> Vec<f64> {
    assert_eq!(features.shape()[0], held_out.len(), "a subject and a fold for each row");
    let mut folds: BTreeMap<&str, usize> = BTreeMap::new();
    for h in held_out {
        assert_eq!(*folds.entry(h.subject).or_insert(h.fold), h.fold, "{} is in two folds", h.subject);
    }
    let columns = problems * outputs;
    let mut predictions = vec![0.0; targets.len()];
    for fold in folds.into_values().collect::<BTreeSet<usize>>() {
        let (test, train): (Vec<usize>, Vec<usize>) =
            (0..held_out.len()).partition(|&i| held_out[i].fold == fold);
        let of_train: Vec<f64> =
            train.iter().flat_map(|i| &targets[i * columns..][..columns]).copied().collect();
        let fit = Standardised::new(features, &train);
        let told = fit.predictions(&of_train, problems, outputs, features, &test);
        for (row, &i) in told.chunks_exact(columns).zip(&test) {
            predictions[i * columns..][..columns].copy_from_slice(row);
        }
    }
    predictions
}

/// The training part of features, each with mean 0 and standard deviation (over n) 1.
struct Standardised {
    x: Vec<f64>,
    shape: [usize; 2],
    mean: Vec<f64>,
    /// 0 where a feature is constant.
    per_unit: Vec<f64>,
}

impl Standardised {
    fn new(features: Mat<'_, f32>, rows: &[usize]) -> Self {
        assert!(!rows.is_empty(), "nothing to learn from");
        let d = features.shape()[1];
        let (mean, per_unit) = (0..d)
            .map(|j| {
                let column: Vec<f64> = rows.iter().map(|&i| f64::from(features.row(i)[j])).collect();
                let mean = mean(&column);
                let sd = (column.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / rows.len() as f64).sqrt();
                (mean, if sd > 0.0 { 1.0 / sd } else { 0.0 })
            })
            .unzip();
        let mut standardised = Standardised { x: Vec::new(), shape: [rows.len(), d], mean, per_unit };
        standardised.x = standardised.of(features, rows);
        standardised
    }

    /// Rows of features in the units of the training part.
    fn of(&self, features: Mat<'_, f32>, rows: &[usize]) -> Vec<f64> {
        let unit = |((f, mean), per): ((&f32, &f64), &f64)| (f64::from(*f) - mean) * per;
        let row = |&i: &usize| features.row(i).iter().zip(&self.mean).zip(&self.per_unit).map(unit);
        rows.iter().flat_map(row).collect()
    }

    /// Predictions `[rows, problems, outputs]` by what is learnt from `targets` `[n, problems, outputs]`; each problem
    /// has a penalty of its own.
    fn predictions(
        &self,
        targets: &[f64],
        problems: usize,
        outputs: usize,
        features: Mat<'_, f32>,
        rows: &[usize],
    ) -> Vec<f64> {
        let ([n, d], columns) = (self.shape, problems * outputs);
        assert_eq!(targets.len(), n * columns, "targets of each row");
        let means: Vec<f64> = (0..columns)
            .map(|j| mean(&targets.iter().skip(j).step_by(columns).copied().collect::<Vec<f64>>()))
            .collect();
        let centred: Vec<f64> = targets.iter().enumerate().map(|(i, t)| t - means[i % columns]).collect();
        let centred = Mat::rows(&centred, [n, columns]);
        let test = self.of(features, rows);
        let ridge = Ridge::new(Mat::rows(&self.x, [n, d]));
        // Features that are all constant have no unit, and predict the mean with any.
        let unit = Some(ridge.mean_square()).filter(|u| *u > 0.0).unwrap_or(1.0);
        let mut least = vec![f64::INFINITY; problems];
        let mut predictions: Vec<f64> = rows.iter().flat_map(|_| &means).copied().collect();
        for fit in PENALTIES.iter().filter_map(|penalty| ridge.penalised(penalty * unit)) {
            let mut errors = vec![0.0; problems];
            for (i, error) in fit.left_out_errors(centred).iter().enumerate() {
                errors[i % columns / outputs] += error * error;
            }
            let better: Vec<bool> = errors.iter().zip(&least).map(|(e, least)| e < least).collect();
            if !better.contains(&true) {
                continue;
            }
            let weights = fit.weights(centred);
            let told = product(Mat::rows(&test, [rows.len(), d]), Mat::rows(&weights, [d, columns]));
            for (i, (prediction, told)) in predictions.iter_mut().zip(told).enumerate() {
                if better[i % columns / outputs] {
                    *prediction = means[i % columns] + told;
                }
            }
            errors.iter().zip(&mut least).for_each(|(e, least)| *least = least.min(*e));
        }
        predictions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 40 people with two scans, whose first feature is near their age; the second says their group.
    fn people() -> (Vec<f32>, Vec<f64>, Vec<String>) {
        let mut r = Philox::new(9, Purpose::Test, 0, 0);
        let ages: Vec<f64> = (0..80).map(|i| 20.0 + f64::from(i / 2)).collect();
        let features = ages.iter().enumerate().flat_map(|(i, age)| {
            let group = if i / 2 % 2 == 0 { 1.0 } else { -1.0 };
            [*age as f32 + r.normal(), group + 0.3 * r.normal(), r.normal(), 4.0]
        });
        (features.collect(), ages, (0..80).map(|i| format!("sub-{}", i / 2)).collect())
    }

    fn held_out(subjects: &[String]) -> Vec<HeldOut<'_>> {
        subjects.iter().enumerate().map(|(i, subject)| HeldOut { subject, fold: i / 2 / 2 % 5 }).collect()
    }

    #[test]
    fn what_is_in_the_features_is_found_and_what_is_not_is_not() {
        let (features, ages, subjects) = people();
        let (features, held_out) = (Mat::rows(&features, [80, 4]), held_out(&subjects));
        let told = predictability_of_number(features, &ages, &held_out, 0);
        assert!(told.r2.value > 0.95 && told.r2.low > 0.9 && told.spearman.value > 0.95, "{told:?}");
        let groups: Vec<&str> = (0..80).map(|i| if i / 2 % 2 == 0 { "even" } else { "odd" }).collect();
        let of_group = predictability_of_class(features, &groups, &held_out, 0);
        assert!(of_group.balanced_accuracy > 0.95 && of_group.p == 1.0 / 201.0, "{of_group:?}");
        assert!(of_group.chance.low < 0.5 && 0.5 < of_group.chance.high, "{of_group:?}");
        // A third that neither knows.
        let thirds: Vec<&str> = (0..80).map(|i| ["a", "b", "c"][i / 2 % 3]).collect();
        let of_third = predictability_of_class(features, &thirds, &held_out, 0);
        assert!(of_third.p > 0.05 && of_third.classes == 3, "{of_third:?}");
    }

    #[test]
    fn features_that_say_nothing_give_the_mean() {
        let (features, ages, _) = people();
        let constant: Vec<f32> = features.chunks(4).map(|f| f[3]).collect();
        let constant = Mat::rows(&constant, [80, 1]);
        let told = predict_age(constant, &ages, constant.sub_rows(0, 3));
        told.iter().for_each(|age| approx::assert_relative_eq!(*age, 39.5, epsilon = 1e-9));
    }

    #[test]
    #[should_panic(expected = "sub-0 is in two folds")]
    fn a_subject_is_in_one_fold() {
        let (features, ages, subjects) = people();
        let mut held_out = held_out(&subjects);
        held_out[0].fold = 3;
        predictability_of_number(Mat::rows(&features, [80, 4]), &ages, &held_out, 0);
    }
}
