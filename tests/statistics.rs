//! The statistics of a study held to SciPy, statsmodels, scikit-learn and numpy on recorded samples
//! (`tests/statistics/make.py`), and to what they promise: how often they find a difference that is not there.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use approx::assert_relative_eq;
use gyrus::machine::{
    Mat,
    philox::{Philox, Purpose},
};
use gyrus::study::{
    arms::{Tested, summary},
    bootstrap::Estimate,
    comparison::{Comparison, Unit, compare, holm, sign_flip, student},
    gap::{Correction, Measured, dependence, gaps},
    probe::{HeldOut, predict_age, predictability_of_class, predictability_of_number},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

fn recorded(name: &str) -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/statistics").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn read<T: DeserializeOwned>(value: &Value) -> T {
    T::deserialize(value).unwrap()
}

/// The value to rounding; the ends of the interval to 0.1 standard deviations, as the 2.5th percentile of 10,000 draws
/// wanders by 0.027.
#[track_caller]
fn same(ours: Estimate, theirs: &Value) {
    let [value, low, high, sd] = ["value", "low", "high", "sd"].map(|k| theirs[k].as_f64().unwrap());
    assert_relative_eq!(ours.value, value, max_relative = 1e-9);
    assert_relative_eq!(ours.low, low, epsilon = 0.1 * sd);
    assert_relative_eq!(ours.high, high, epsilon = 0.1 * sd);
}

/// The two arms of arms.json.
fn arms(rows: &Value) -> [Vec<Tested>; 2] {
    type Row = (usize, usize, f64, f64, f64, u64, usize);
    let rows: Vec<Row> = read(rows);
    let arm = |second: bool| {
        let tested = |&(subject, scan, age, a, b, seed, fold): &Row| Tested {
            subject: format!("sub-{subject:02}"),
            scan: scan.to_string(),
            age,
            prediction: if second { b } else { a },
            seed,
            fold,
        };
        rows.iter().map(tested).collect()
    };
    [arm(false), arm(true)]
}

#[test]
fn a_summary_is_that_of_numpy() {
    let recorded = recorded("arms.json");
    let expected = &recorded["expected"]["summary"];
    let [a, _] = arms(&recorded["rows"]);
    let s = summary(&a, 1);
    assert_eq!((s.subjects, s.scans, s.seeds), (40, 50, 3));
    for (ours, name) in [(s.mae, "mae"), (s.rmse, "rmse"), (s.r2, "r2"), (s.pearson_r, "pearson_r")] {
        same(ours, &expected[name]);
    }
    assert_relative_eq!(s.bias, read(&expected["bias"]), max_relative = 1e-9);
    assert_relative_eq!(s.mae_sd_over_seeds, read(&expected["mae_sd_over_seeds"]), max_relative = 1e-9);
}

#[test]
fn a_comparison_is_that_of_scipy() {
    let recorded = recorded("arms.json");
    let expected = &recorded["expected"];
    let [a, b] = arms(&recorded["rows"]);
    let c = compare(&a, &b, Unit::SeedAndFold, 1).unwrap();
    assert_eq!((c.subjects, c.pairs, c.unpaired, c.runs), (40, 150, 0, 15));
    same(c.difference, &expected["difference"]);
    // 10,000 flips find a p of 0.05 with a standard error of 0.002, one of 0.5 with 0.005.
    assert_relative_eq!(c.p_subjects, read(&expected["p_subjects"]), epsilon = 0.01);
    assert_relative_eq!(c.p_runs, read(&expected["p_runs"]), max_relative = 1e-9);
    assert_relative_eq!(c.p_crossed, read(&expected["p_crossed"]), max_relative = 1e-9);
    let by_seed = compare(&a, &b, Unit::Seed, 1).unwrap();
    assert_relative_eq!(by_seed.p_runs, read(&expected["p_seeds"]), max_relative = 1e-9);
    assert_eq!(c.p, c.p_subjects.max(c.p_runs).max(c.p_crossed));

    let exact: Vec<f64> = read(&expected["first_13"]);
    assert_relative_eq!(sign_flip(&exact, 0), read(&expected["first_13_p"]), max_relative = 1e-12);
    for (values, p) in read::<Vec<(Vec<f64>, f64)>>(&expected["students"]) {
        assert_relative_eq!(student(&values), p, max_relative = 1e-9);
    }
    for (p, adjusted) in read::<Vec<(Vec<f64>, Vec<f64>)>>(&expected["holm"]) {
        holm(&p).iter().zip(&adjusted).for_each(|(ours, theirs)| {
            assert_relative_eq!(ours, theirs, max_relative = 1e-12);
        });
    }
}

/// Standard deviations, in years, of what a difference of errors is made of.
#[derive(Clone, Copy)]
struct Effects {
    subject: f64,
    run: f64,
    scan: f64,
}

/// A study of 60 people, 3 seeds and 5 folds whose arms differ by `difference` years on average.
fn simulated(study: u64, difference: f64, sd: Effects) -> Comparison {
    let mut random = Philox::new(study, Purpose::Test, 0, 0);
    let mut normal = |sd: f64| sd * f64::from(random.normal());
    let subjects: Vec<f64> = (0..60).map(|_| normal(sd.subject)).collect();
    let mut arms = [Vec::new(), Vec::new()];
    for seed in 0..3 {
        let runs: Vec<f64> = (0..5).map(|_| normal(sd.run)).collect();
        for (i, subject) in subjects.iter().enumerate() {
            let d = difference + subject + runs[i % 5] + normal(sd.scan);
            // Far enough from 0 that errors differ by just what predictions do.
            for (arm, error) in arms.iter_mut().zip([100.0 + d, 100.0]) {
                let prediction = 50.0 + error;
                let subject = format!("sub-{i:02}");
                arm.push(Tested { subject, scan: "1".into(), age: 50.0, prediction, seed, fold: i % 5 });
            }
        }
    }
    compare(&arms[0], &arms[1], Unit::SeedAndFold, study).unwrap()
}

/// The share of 400 studies in which a p value is below 0.05: that over subjects, over runs, the larger of the two, and
/// the one that counts.
fn found(difference: f64, sd: Effects) -> [f64; 4] {
    let mut found = [0.0; 4];
    for study in 0..400 {
        let c = simulated(study, difference, sd);
        let values = [c.p_subjects, c.p_runs, c.p_subjects.max(c.p_runs), c.p];
        found.iter_mut().zip(values).for_each(|(n, p)| *n += f64::from(u8::from(p < 0.05)) / 400.0);
    }
    let Effects { subject, run, scan } = sd;
    let [by_subject, by_run, both, p] = found.map(|n| 100.0 * n);
    println!(
        "difference {difference}, SD of subjects {subject}, runs {run}, scans {scan} years: over subjects \
         {by_subject:.1} %, runs {by_run:.1} %, both {both:.1} %, p {p:.1} %"
    );
    found
}

/// Held to `numpy.polyfit` for the corrections and to statsmodels for the slope.
#[test]
fn gaps_and_what_they_go_with_are_those_of_numpy_and_statsmodels() {
    let recorded = recorded("arms.json");
    let expected = &recorded["gap"];
    let [a, _] = arms(&recorded["rows"]);
    let corrected =
        [("none", Correction::None), ("cole", Correction::Cole), ("beheshti", Correction::Beheshti)];
    for (name, correction) in corrected {
        let theirs: Vec<f64> = read(&expected["gaps"][name]);
        let ours = gaps(&a, correction).unwrap();
        assert_eq!(ours.len(), theirs.len());
        // The recorded scans are in the order of subject and scan, as ours are.
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert_relative_eq!(ours.gap, theirs, epsilon = 1e-9);
        }
    }
    let gaps = gaps(&a, Correction::Beheshti).unwrap();
    let quality: Vec<f64> = read(&expected["quality"]);
    let measured: Vec<Measured> = gaps
        .iter()
        .zip(quality)
        .map(|(g, quality)| Measured { subject: &g.subject, age: g.age, gap: g.gap, quality })
        .collect();
    let d = dependence(&measured, 1);
    same(d.slope, &expected["slope"]);
    same(d.spearman, &expected["spearman"]);
}

/// Held to scikit-learn's RidgeCV and RidgeClassifierCV with the same penalties, over features and over rows.
#[test]
fn a_probe_is_that_of_scikit_learn() {
    let recorded = recorded("probe.json");
    let subjects: Vec<usize> = read(&recorded["subject"]);
    let names: Vec<String> = subjects.iter().map(|s| format!("sub-{s}")).collect();
    let folds: Vec<usize> = read(&recorded["fold"]);
    let (ages, labels): (Vec<f64>, Vec<usize>) = (read(&recorded["age"]), read(&recorded["label"]));
    let labels: Vec<String> = labels.iter().map(usize::to_string).collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let features: Vec<Vec<f32>> = read(&recorded["features"]);
    let held_out: Vec<HeldOut> =
        names.iter().zip(&folds).map(|(subject, &fold)| HeldOut { subject, fold }).collect();
    for (name, expected) in recorded["expected"].as_object().unwrap() {
        let width: usize = read(&expected["width"]);
        let rows = |test: Option<bool>| -> Vec<f32> {
            let of = features.iter().zip(&folds).filter(|(_, fold)| test.is_none_or(|t| t == (**fold == 0)));
            of.flat_map(|(row, _)| row[..width].iter().copied()).collect()
        };
        let mat = |data: &'_ [f32]| [data.len() / width, width];
        let (train, test, all) = (rows(Some(false)), rows(Some(true)), rows(None));
        let learned: Vec<f64> =
            ages.iter().zip(&folds).filter(|(_, fold)| **fold != 0).map(|(age, _)| *age).collect();
        let ours = predict_age(Mat::rows(&train, mat(&train)), &learned, Mat::rows(&test, mat(&test)));
        for (ours, theirs) in ours.iter().zip(read::<Vec<f64>>(&expected["test"])) {
            assert_relative_eq!(*ours, theirs, epsilon = 1e-4);
        }
        let features = Mat::rows(&all, mat(&all));
        let number = predictability_of_number(features, &ages, &held_out, 1);
        for (ours, theirs) in [(number.r2, "r2"), (number.spearman, "spearman")] {
            let [value, low, high, sd] =
                ["value", "low", "high", "sd"].map(|k| expected[theirs][k].as_f64().unwrap());
            assert_relative_eq!(ours.value, value, epsilon = 1e-5);
            assert_relative_eq!(ours.low, low, epsilon = 0.15 * sd);
            assert_relative_eq!(ours.high, high, epsilon = 0.15 * sd);
        }
        let class = predictability_of_class(features, &labels, &held_out, 1);
        let theirs = |key: &str| expected[key].as_f64().unwrap();
        assert_relative_eq!(class.balanced_accuracy, theirs("balanced_accuracy"), epsilon = 1e-9);
        // Means over 200 and 300 permutations, each with a standard deviation of about 0.08.
        assert_relative_eq!(class.chance.value, theirs("chance"), epsilon = 0.03);
        assert!((class.p - theirs("p")).abs() < 0.15, "{name}: {} {}", class.p, theirs("p"));
    }
}

#[test]
fn what_is_not_there_is_rarely_found_and_what_is_there_mostly() {
    let none = [(2.0, 0.0, 2.0), (2.0, 0.5, 2.0), (2.0, 1.0, 0.5), (2.0, 2.0, 2.0), (0.5, 1.0, 2.0)]
        .map(|(subject, run, scan)| found(0.0, Effects { subject, run, scan }));
    assert!(none.iter().all(|&[_, _, _, p]| p <= 0.07));
    // Why `p` is not the larger of the first two.
    assert!(none[3][0] > 0.2 && none[0][1] > 0.12 && none[2][2] > 0.07);
    // Half a standard deviation of people.
    let [_, _, _, p] = found(1.0, Effects { subject: 2.0, run: 0.5, scan: 2.0 });
    assert!(p > 0.7);
}
