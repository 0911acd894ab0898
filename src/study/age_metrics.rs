//! How good predicted ages are: the numbers that brain-age work reports, always beside predicting the mean.
//!
//! All of them are of uncorrected predictions. Error metrics depend on the cohort's spread of ages (de Lange et al.
//! 2022), so the spread and the baseline stand in every report; MAE and r rank models differently, so both do.
use std::{collections::BTreeMap, fmt};

use super::{
    Error,
    bootstrap::{Estimate, RESAMPLES, mean_over_subjects},
    statistics::{correlation, mean, median, ranks, sum_of_products},
};

/// One scan of a person of known age.
#[derive(Clone, Debug)]
pub struct Row {
    /// Who; resampling draws whole subjects.
    pub subject: String,
    /// Age at the scan, years.
    pub age: f64,
    /// Predicted age, years.
    pub prediction: f64,
}

/// The metrics of one set of predictions, in years where they have a unit. What is undefined (a correlation when all
/// ages are equal) is NaN here and `null` in JSON.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// Different people.
    pub subjects: usize,
    /// Their scans.
    pub scans: usize,
    /// The spread of ages.
    pub age: Spread,
    /// Mean absolute error, with its 95 % interval over subjects.
    pub mae: Estimate,
    /// Median absolute error.
    pub median_absolute_error: f64,
    /// Root mean square error.
    pub rmse: f64,
    /// 1 - SS_res / SS_tot (scikit-learn's R²; below 0 when worse than the mean), not the square of r.
    pub r2: f64,
    /// Pearson correlation of age and prediction.
    pub pearson_r: f64,
    /// Spearman correlation; ties have their mean rank.
    pub spearman_rho: f64,
    /// Mean of prediction - age.
    pub bias: f64,
    /// Slope of the least-squares line of prediction on age; below 1 when predictions shrink towards the mean.
    pub slope: f64,
    /// Intercept of that line.
    pub intercept: f64,
    /// Pearson correlation of gap = prediction - age with age.
    pub gap_age_r: f64,
    /// The same by decade of age.
    pub decades: Vec<Decade>,
    /// Where the mean that the baseline predicts comes from.
    pub baseline: Baseline,
    /// The baseline's mean absolute error.
    pub baseline_mae: Estimate,
    /// Mean of |error of the model| - |error of the baseline| on the same scans; below 0 when the model is better.
    pub model_minus_baseline: Estimate,
}

/// The mean that a model has to beat.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The mean age of the training set.
    TrainingMean,
    /// For each subject the mean age over the scans of all others in the table.
    LeaveOneSubjectOut,
}

/// Ages in years.
#[derive(Clone, Copy, Debug, serde::Serialize)]
#[expect(missing_docs, reason = "the names say it; sd divides by n - 1")]
pub struct Spread {
    pub mean: f64,
    pub sd: f64,
    pub min: f64,
    pub max: f64,
}

/// The scans of people aged `from` to below `from` + 10.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Decade {
    /// The first year.
    pub from: u32,
    /// Scans in it.
    pub scans: usize,
    /// Mean absolute error, years.
    pub mae: f64,
    /// Mean of prediction - age, years.
    pub bias: f64,
}

impl Report {
    /// Measures `rows` against predicting the mean of `training_ages`, or without them the mean of the other people.
    /// `seed` is that of the bootstrap.
    ///
    /// # Errors
    /// [`Error::TooFewSubjects`] with fewer than two.
    pub fn new(rows: &[Row], training_ages: Option<&[f64]>, seed: u64) -> Result<Report, Error> {
        // Per subject: the sum of ages and the number of scans.
        let mut people: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for row in rows {
            let (sum, scans) = people.entry(&row.subject).or_default();
            *sum += row.age;
            *scans += 1.0;
        }
        if people.len() < 2 {
            return Err(Error::TooFewSubjects { found: people.len() });
        }
        let age: Vec<f64> = rows.iter().map(|r| r.age).collect();
        let prediction: Vec<f64> = rows.iter().map(|r| r.prediction).collect();
        let gap: Vec<f64> = rows.iter().map(|r| r.prediction - r.age).collect();
        let error: Vec<f64> = gap.iter().map(|g| g.abs()).collect();
        let n = rows.len() as f64;
        let total = n * mean(&age);
        let baseline_error: Vec<f64> = rows
            .iter()
            .map(|row| {
                let (sum, scans) = people[row.subject.as_str()];
                (training_ages.map_or_else(|| (total - sum) / (n - scans), mean) - row.age).abs()
            })
            .collect();
        let estimate = |values: &mut dyn Iterator<Item = f64>| {
            mean_over_subjects(rows.iter().map(|r| r.subject.as_str()).zip(values), seed)
        };

        let (mean_age, bias) = (mean(&age), mean(&gap));
        let deviations = sum_of_products(&age, &age);
        let slope = sum_of_products(&age, &prediction) / deviations;
        let squares: f64 = gap.iter().map(|g| g * g).sum();
        Ok(Report {
            subjects: people.len(),
            scans: rows.len(),
            age: Spread {
                mean: mean_age,
                sd: (deviations / (n - 1.0)).sqrt(),
                min: age.iter().copied().fold(f64::INFINITY, f64::min),
                max: age.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            },
            mae: estimate(&mut error.iter().copied()),
            median_absolute_error: median(&error),
            rmse: (squares / n).sqrt(),
            r2: 1.0 - squares / deviations,
            pearson_r: correlation(&age, &prediction),
            spearman_rho: correlation(&ranks(&age), &ranks(&prediction)),
            bias,
            slope,
            intercept: mean(&prediction) - slope * mean_age,
            gap_age_r: correlation(&age, &gap),
            decades: decades(rows.iter().map(|r| (r.age, r.prediction))),
            baseline: training_ages.map_or(Baseline::LeaveOneSubjectOut, |_| Baseline::TrainingMean),
            baseline_mae: estimate(&mut baseline_error.iter().copied()),
            model_minus_baseline: estimate(&mut error.iter().zip(&baseline_error).map(|(e, b)| e - b)),
        })
    }
}

/// By decade, of scans = (age, prediction).
pub(super) fn decades(scans: impl Iterator<Item = (f64, f64)>) -> Vec<Decade> {
    let mut gaps: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    for (age, prediction) in scans {
        gaps.entry(decade(age)).or_default().push(prediction - age);
    }
    gaps.into_iter()
        .map(|(from, gap)| {
            let mae = gap.iter().map(|g| g.abs()).sum::<f64>() / gap.len() as f64;
            Decade { from, scans: gap.len(), mae, bias: mean(&gap) }
        })
        .collect()
}

/// The first year of the decade of `age`.
pub(super) fn decade(age: f64) -> u32 {
    (age / 10.0) as u32 * 10
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { mean, sd, min, max } = self.age;
        let baseline = match self.baseline {
            Baseline::TrainingMean => "predict the training mean",
            Baseline::LeaveOneSubjectOut => "predict the others' mean",
        };
        writeln!(
            f,
            "{} scans of {} subjects, age {min:.1} to {max:.1} (mean {mean:.1}, SD {sd:.1})",
            self.scans, self.subjects
        )?;
        writeln!(f)?;
        writeln!(f, "  {:<28}{:>8}   95 % interval", "mean absolute error, years", "")?;
        for (name, e) in [
            ("this model", self.mae),
            (baseline, self.baseline_mae),
            ("difference", self.model_minus_baseline),
        ] {
            writeln!(f, "    {name:<26}{:>8.2}   {:.2} to {:.2}", e.value, e.low, e.high)?;
        }
        writeln!(f)?;
        for (name, value, unit) in [
            ("median absolute error", self.median_absolute_error, " years"),
            ("root mean square error", self.rmse, " years"),
            ("bias (prediction - age)", self.bias, " years"),
            ("R² (1 - SS_res/SS_tot)", self.r2, ""),
            ("Pearson r", self.pearson_r, ""),
            ("Spearman rho", self.spearman_rho, ""),
            ("slope on age", self.slope, ""),
            ("intercept", self.intercept, " years"),
            ("correlation of gap and age", self.gap_age_r, ""),
        ] {
            writeln!(f, "  {name:<28}{value:>8.2}{unit}")?;
        }
        writeln!(f, "\n  {:<10}{:>7}{:>9}{:>9}", "age", "scans", "MAE", "bias")?;
        for Decade { from, scans, mae, bias } in &self.decades {
            writeln!(f, "  {:<10}{scans:>7}{mae:>9.2}{bias:>9.2}", format!("{from}-{}", from + 9))?;
        }
        writeln!(f, "\nintervals: {RESAMPLES} resamples of subjects; predictions are not corrected for age")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    /// The expected numbers of this data come from numpy 2, scipy and scikit-learn:
    /// ```python
    /// i = np.arange(40); subject = np.where(i < 20, i // 2, i)
    /// age = 20.0 + 37 * i % 31 * 2; pred = 18.0 + 0.5 * age + (53 * i % 23 - 11); gap = pred - age
    /// others = np.array([age[subject != s].mean() for s in subject])
    /// np.abs(gap).mean(), np.median(np.abs(gap)), np.sqrt((gap ** 2).mean()), gap.mean(), np.polyfit(age, pred, 1)
    /// sklearn.metrics.r2_score(age, pred), pearsonr(age, pred), spearmanr(age, pred), pearsonr(age, gap)
    /// np.abs(others - age).mean(), np.abs(44.5 - age).mean()
    /// s = np.array([[v[subject == k].sum(), (subject == k).sum()] for k in np.unique(subject)])
    /// d = s[default_rng(0).integers(0, 30, (1_000_000, 30))].sum(1); np.percentile(d[:, 0] / d[:, 1], [2.5, 97.5])
    /// ```
    fn rows() -> Vec<Row> {
        let row = |i: u32| {
            let age = f64::from(20 + 37 * i % 31 * 2);
            let prediction = 18.0 + 0.5 * age + f64::from(53 * i % 23) - 11.0;
            Row { subject: (if i < 20 { i / 2 } else { i }).to_string(), age, prediction }
        };
        (0..40).map(row).collect()
    }

    #[test]
    fn metrics_agree_with_scipy_and_scikit_learn() {
        let r = Report::new(&rows(), None, 1).unwrap();
        assert_eq!((r.subjects, r.scans), (30, 40));
        for (ours, theirs) in [
            (r.age.mean, 49.4),
            (r.age.sd, 18.191009331887567),
            (r.mae.value, 10.15),
            (r.median_absolute_error, 8.5),
            (r.rmse, 12.917043005270207),
            (r.r2, 0.4828601537317134),
            (r.pearson_r, 0.803708107441704),
            (r.spearman_rho, 0.8902516346609187),
            (r.bias, -6.55),
            (r.slope, 0.50647781),
            (r.intercept, 17.82999628),
            (r.gap_age_r, -0.7962453421535483),
            (r.baseline_mae.value, 16.007354925775978),
        ] {
            assert_relative_eq!(ours, theirs, max_relative = 1e-8);
        }
        let d = r.decades[4];
        assert_eq!((r.decades.len(), d.from, d.scans, d.mae, d.bias), (7, 60, 6, 14.0, -14.0));
    }

    #[test]
    fn intervals_agree_with_a_million_resamples_in_numpy() {
        let r = Report::new(&rows(), None, 1).unwrap();
        for (ours, low, high) in [
            (r.mae, 7.52380952, 12.87179487),
            (r.baseline_mae, 12.86611191, 19.14150879),
            (r.model_minus_baseline, -8.87153972, -3.01704971),
        ] {
            // The 2.5th percentile of 10,000 resamples wanders by about 0.04 of its distance to the mean.
            assert_relative_eq!(ours.low, low, epsilon = 0.15);
            assert_relative_eq!(ours.high, high, epsilon = 0.15);
        }
    }

    #[test]
    fn the_training_mean_is_the_baseline_when_it_is_known() {
        let r = Report::new(&rows(), Some(&[44.0, 45.0]), 1).unwrap();
        assert_eq!((r.baseline, r.baseline_mae.value), (Baseline::TrainingMean, 15.75));
        assert!(r.to_string().contains("predict the training mean"));
    }

    #[test]
    fn one_person_is_too_few() {
        let error = Report::new(&rows()[..2], None, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "1 subject(s) with a known age; intervals over subjects need at least 2"
        );
    }

    #[test]
    fn equal_ages_leave_correlations_undefined_and_json_says_null() {
        let rows = ["a", "b"].map(|s| Row { subject: s.into(), age: 50.0, prediction: 51.0 });
        let r = Report::new(&rows, None, 1).unwrap();
        assert!(r.pearson_r.is_nan() && r.slope.is_nan());
        assert!(serde_json::to_string(&r).unwrap().contains(r#""pearson_r":null"#));
    }
}
