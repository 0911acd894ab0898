//! One arm of a study: a pretraining set, whose model was fine-tuned with several seeds and folds and tested on the
//! same people each time.
use std::collections::{BTreeMap, BTreeSet};

use super::{
    age_metrics::{Decade, decade, decades},
    bootstrap::{Cells, Estimate},
    statistics::{deviations, mean, sum_of_products},
};

/// One scan that one training did not see, with the age it predicted.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Tested {
    /// Who.
    pub subject: String,
    /// Which of their scans.
    pub scan: String,
    /// Age at the scan, years.
    pub age: f64,
    /// Predicted age, years.
    pub prediction: f64,
    /// The seed of the training.
    pub seed: u64,
    /// The fold that the training held out.
    pub fold: usize,
}

/// How well an arm predicts: each number is computed for each seed and averaged over seeds; intervals are those of
/// 10,000 draws of subjects and of seeds, both with replacement. Years where there is a unit. What is undefined is NaN
/// here and `null` in JSON.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Summary {
    /// Different people.
    pub subjects: usize,
    /// Their different scans.
    pub scans: usize,
    /// Trainings of each fold.
    pub seeds: usize,
    /// Mean absolute error.
    pub mae: Estimate,
    /// Root mean square error.
    pub rmse: Estimate,
    /// 1 - SS_res / SS_tot, not the square of r.
    pub r2: Estimate,
    /// Pearson correlation of age and prediction.
    pub pearson_r: Estimate,
    /// Mean of prediction - age.
    pub bias: f64,
    /// Standard deviation (over S - 1) of the seeds' mean absolute errors; NaN with one seed.
    pub mae_sd_over_seeds: f64,
    /// By decade of age, over the predictions of all seeds; `scans` counts each scan once.
    pub decades: Vec<Decade>,
}

/// Summarises an arm; `seed` is that of the bootstrap.
///
/// # Panics
/// Without a row.
pub fn summary(rows: &[Tested], seed: u64) -> Summary {
    // Sums of squares cancel less about the middle of the ages.
    let middle = mean(&rows.iter().map(|r| r.age).collect::<Vec<f64>>());
    let cells = Cells::new(rows.iter().map(|row| {
        let (x, y, e) = (row.age - middle, row.prediction - middle, row.prediction - row.age);
        (row.subject.as_str(), row.seed, [1.0, e.abs(), e, e * e, x, x * x, y, y * y, x * y])
    }));
    let statistics = |[n, absolute, error, squares, x, xx, y, yy, xy]: [f64; 9]| {
        let (sxx, syy) = (deviations(n, x, xx), deviations(n, y, yy));
        let r = (xy - x * y / n) / (sxx * syy).sqrt();
        [absolute / n, (squares / n).sqrt(), 1.0 - squares / sxx, r, error / n]
    };
    let maes: Vec<f64> = cells.by_seed(statistics).into_iter().map(|s| s[0]).collect();
    let [mae, rmse, r2, pearson_r, bias] = cells.estimates(statistics, seed);

    let scans: BTreeMap<(&str, &str), u32> =
        rows.iter().map(|r| ((r.subject.as_str(), r.scan.as_str()), decade(r.age))).collect();
    let mut decades = decades(rows.iter().map(|r| (r.age, r.prediction)));
    for d in &mut decades {
        d.scans = scans.values().filter(|from| **from == d.from).count();
    }
    Summary {
        subjects: rows.iter().map(|r| r.subject.as_str()).collect::<BTreeSet<_>>().len(),
        scans: scans.len(),
        seeds: maes.len(),
        mae,
        rmse,
        r2,
        pearson_r,
        bias: bias.value,
        mae_sd_over_seeds: (sum_of_products(&maes, &maes) / (maes.len() as f64 - 1.0)).sqrt(),
        decades,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(subject: &str, age: f64, error: f64, seed: u64) -> Tested {
        let (subject, scan) = (subject.to_owned(), format!("{subject}-{age}"));
        Tested { subject, scan, age, prediction: age + error, seed, fold: 0 }
    }

    #[test]
    fn scans_count_once_and_numbers_are_means_over_seeds() {
        let errors = [1.0, -3.0];
        let rows: Vec<Tested> = (0..2)
            .flat_map(|seed| {
                [("a", 41.0), ("b", 49.0), ("b", 50.0)].map(|(s, age)| row(s, age, errors[seed], seed as u64))
            })
            .collect();
        let s = summary(&rows, 0);
        assert_eq!((s.subjects, s.scans, s.seeds), (2, 3, 2));
        assert_eq!(s.mae, Estimate { value: 2.0, low: 1.0, high: 3.0 });
        assert_eq!((s.bias, s.mae_sd_over_seeds), (-1.0, 2.0_f64.sqrt()));
        assert_eq!(s.decades.iter().map(|d| (d.from, d.scans)).collect::<Vec<_>>(), [(40, 2), (50, 1)]);
    }

    #[test]
    fn what_is_undefined_is_null() {
        let s = summary(&[row("a", 50.0, 1.0, 0), row("b", 50.0, 2.0, 0)], 0);
        let json = serde_json::to_string(&s).unwrap();
        assert!(json.contains(r#""pearson_r":{"value":null,"low":null,"high":null}"#), "{json}");
        assert!(json.contains(r#""mae_sd_over_seeds":null"#), "{json}");
    }

    #[test]
    fn the_answer_does_not_depend_on_threads() {
        let rows: Vec<Tested> = (0..40)
            .map(|i| row(&format!("{}", i % 13), f64::from(i), f64::from(i * i % 7), (i % 3) as u64))
            .collect();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            serde_json::to_string(&pool.install(|| summary(&rows, 5))).unwrap()
        };
        assert_eq!(on(1), on(3));
    }
}
