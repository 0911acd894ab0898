//! The page of a fine-tuning run: how good its ages are.
use super::{
    chart::{Dots, Dotted, Lines, Point, Scatter},
    html::{Cell, Column, Page, Table, details, figures, fixed, note, numbers, paragraph},
    pretraining::name,
    run::{Log, facts, settings, smooth, thousands},
};
use crate::{
    error::FileError,
    study::{
        age_metrics::{Baseline, Report, Row},
        bootstrap::{Estimate, RESAMPLES, mean_over_subjects},
        predictions::{self, Prediction},
    },
    train::{
        Card,
        checkpoint::{Head, Task},
    },
};
use std::path::{Path, PathBuf};

/// The bootstrap's seed: fixed, so that a table always has the same intervals.
const SEED: u64 = 0;
/// Rows of the table of the worst.
const WORST: usize = 25;
/// An interval over fewer people says nothing.
const FEWEST: usize = 3;

/// A model of the run.
#[derive(Debug)]
pub struct Model {
    /// Its folder.
    pub folder: PathBuf,
    /// What its file says of it.
    pub card: Card,
}

/// The page of the run in `folder` with `models`, one for each fold, that predicted `table`.
///
/// # Errors
/// Files of the run that cannot be read.
pub fn page(folder: &Path, models: &[Model], table: &[Prediction]) -> Result<String, FileError> {
    let rows = predictions::rows(table);
    let mut title = Page::new("Brain age", &name(folder), "");
    match Report::new(&rows, None, SEED) {
        Ok(report) => {
            title = Page::new("Brain age", &name(folder), &answer(&report));
            title.section("In short", short(&report));
            title.section("Predicted and true age", ages(table, &report));
            title.section("All metrics", metrics(&report));
            title.section("Largest errors", worst(table));
        }
        Err(why) => title.section("Not measured", paragraph(&format!("Nothing was measured: {why}."))),
    }
    title.section("Loss", losses(models)?);
    title.section("Model and data", models.first().map_or(String::new(), |m| model(models.len(), &m.card)));
    title.section("Settings", details("All settings of the run", &settings(folder)?));
    Ok(title.render())
}

fn years(e: Estimate) -> String {
    format!("{} to {}", fixed(e.low, 2), fixed(e.high, 2))
}

fn answer(report: &Report) -> String {
    let Report { subjects, mae, baseline_mae, model_minus_baseline, .. } = report;
    let verdict = match model_minus_baseline {
        d if d.high < 0.0 => "better than",
        d if d.low > 0.0 => "worse than",
        _ => "not measurably different from",
    };
    format!(
        "Ages of {subjects} people, each predicted by a model that had not learned from them, are {} years off on \
         average (95 % interval {}): {verdict} predicting the mean ({} years).",
        fixed(mae.value, 1),
        years(*mae),
        fixed(baseline_mae.value, 1)
    )
}

fn short(r: &Report) -> String {
    numbers(&[
        (fixed(r.mae.value, 2), "mean absolute error, years", years(r.mae)),
        (fixed(r.baseline_mae.value, 2), "predicting the mean, years", years(r.baseline_mae)),
        (fixed(r.model_minus_baseline.value, 2), "difference, years", years(r.model_minus_baseline)),
        (fixed(r.pearson_r, 2), "Pearson's r", String::new()),
        (fixed(r.bias, 2), "bias, years", String::new()),
        (fixed(r.slope, 2), "slope on age", String::new()),
    ])
}

/// Predictions as points.
pub(super) fn points(table: &[Prediction]) -> Vec<Point> {
    let point = |p: &Prediction| {
        let (x, y) = (p.age?, p.predicted_age);
        Some(Point { x, y, label: format!("{}: {x:.1} years, predicted {y:.1}", p.subject) })
    };
    table.iter().filter_map(point).collect()
}

fn ages(table: &[Prediction], report: &Report) -> String {
    let points = points(table);
    let scatter = Scatter {
        title: "Predicted and true age",
        caption: "A point a scan. Dashed: predicted is true. Solid: the least-squares line of prediction on age; flatter \
                  than the dashed one where predictions are pulled towards the mean.",
        axes: ["true age, years", "predicted age, years"],
        points: &points,
        fit: Some([report.slope, report.intercept]),
        range: None,
        small: false,
    };
    let rows = predictions::rows(table);
    let (categories, errors, biases) = by_decade(&rows);
    let dots = |title, caption, axis, values, reference| {
        let series = [Dotted { name: String::new(), values }];
        let axes = ["true age, years", axis];
        Dots { title, caption, axes, categories: &categories, series: &series, reference }.render()
    };
    let caption = "Mean over scans with the 95 % interval over people; no interval for fewer than 3 people.";
    let error = dots("Error by decade", caption, "mean absolute error, years", errors, None);
    let caption = "Mean of prediction minus age: above 0, people look older than they are.";
    let bias = dots("Bias by decade", caption, "predicted minus true, years", biases, Some(0.0));
    figures(&[scatter.render(), format!("<div>\n{error}{bias}</div>\n")], false)
}

type ByDecade = (Vec<(String, String)>, Vec<Option<Estimate>>, Vec<Option<Estimate>>);

/// Decades, and the mean absolute error and the mean of prediction - age in each.
fn by_decade(rows: &[Row]) -> ByDecade {
    let decade = |row: &Row| (row.age / 10.0) as u32 * 10;
    let mut present: Vec<u32> = rows.iter().map(decade).collect();
    present.sort_unstable();
    present.dedup();
    let (mut names, mut errors, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    for from in present {
        let inside = || rows.iter().filter(|row| decade(row) == from);
        let mut people: Vec<&str> = inside().map(|row| row.subject.as_str()).collect();
        people.sort_unstable();
        people.dedup();
        let estimate = |of: &dyn Fn(f64) -> f64| {
            let gaps = inside().map(|row| (row.subject.as_str(), of(row.prediction - row.age)));
            let Estimate { value, low, high } = mean_over_subjects(gaps, SEED);
            let [low, high] = if people.len() < FEWEST { [f64::NAN; 2] } else { [low, high] };
            Some(Estimate { value, low, high })
        };
        names.push((format!("{from}\u{2013}{}", from + 9), format!("n {}", people.len())));
        errors.push(estimate(&f64::abs));
        biases.push(estimate(&|gap| gap));
    }
    (names, errors, biases)
}

fn metrics(r: &Report) -> String {
    let baseline = match r.baseline {
        Baseline::TrainingMean => "Predicting the training mean",
        Baseline::LeaveOneSubjectOut => "Predicting the others' mean",
    };
    let columns = [("Metric", Column::Text), ("Value", Column::Number), ("95 % interval", Column::Text)];
    let mut table = Table::new(
        &format!(
            "{} scans of {} people aged {} to {} (mean {}, SD {})",
            r.scans,
            r.subjects,
            fixed(r.age.min, 1),
            fixed(r.age.max, 1),
            fixed(r.age.mean, 1),
            fixed(r.age.sd, 1)
        ),
        &columns,
    );
    for (name, e) in [
        ("Mean absolute error, years", r.mae),
        (baseline, r.baseline_mae),
        ("Difference of the two", r.model_minus_baseline),
    ] {
        table.row(vec![Cell::text(name), Cell::number(e.value, 2), Cell::text(&years(e))]);
    }
    for (name, value) in [
        ("Median absolute error, years", r.median_absolute_error),
        ("Root mean square error, years", r.rmse),
        ("Bias (prediction \u{2212} age), years", r.bias),
        ("R² (1 \u{2212} SS_res / SS_tot)", r.r2),
        ("Pearson's r", r.pearson_r),
        ("Spearman's ρ", r.spearman_rho),
        ("Slope on age", r.slope),
        ("Intercept, years", r.intercept),
        ("Correlation of gap and age", r.gap_age_r),
    ] {
        table.row(vec![Cell::text(name), Cell::number(value, 2), Cell::text("")]);
    }
    let resamples = thousands(RESAMPLES);
    table.render()
        + &note(&format!(
            "Intervals: percentiles of {resamples} resamples of people. Predictions are not corrected for age. Errors \
             depend on the spread of ages: compare them within one set of people."
        ))
}

fn worst(table: &[Prediction]) -> String {
    let mut known: Vec<(&Prediction, f64, f64)> =
        table.iter().filter_map(|p| Some((p, p.age?, p.predicted_age - p.age?))).collect();
    known.sort_by(|a, b| b.2.abs().total_cmp(&a.2.abs()));
    known.truncate(WORST);
    let columns = [
        ("Person", Column::Text),
        ("Scan", Column::Path),
        ("Age", Column::Number),
        ("Predicted", Column::Number),
        ("Gap", Column::Number),
        ("Fold", Column::Number),
        ("To know", Column::Words),
    ];
    let mut worst =
        Table::new(&format!("The {} scans with the largest errors, years", known.len()), &columns);
    for (p, age, gap) in known {
        worst.row(vec![
            Cell::text(&p.subject),
            Cell::text(&p.scan),
            Cell::number(age, 1),
            Cell::number(p.predicted_age, 1),
            Cell::number(gap, 1),
            p.fold.map_or(Cell::text("n/a"), Cell::count),
            Cell::text(&p.warnings),
        ]);
    }
    worst.render()
}

fn losses(models: &[Model]) -> Result<String, FileError> {
    let (mut learned, mut watched) = (Vec::new(), Vec::new());
    for (i, Model { folder, card }) in models.iter().enumerate() {
        let (log, name) = (Log::read(folder)?, format!("fold {}", i + 1));
        let epochs = card.progress.epochs;
        let mut curve = smooth(&name, log.course("loss", epochs));
        // Single updates of many folds would hide each other.
        if models.len() > 1 {
            curve.behind.clear();
        }
        learned.push(curve);
        let held_out = log.course("watched_loss", epochs);
        if !held_out.is_empty() {
            watched.push(smooth(&name, held_out));
        }
    }
    let caption = "Of what the network adds to the readout where there is one, in the unit of the loss.";
    let loss = Lines {
        title: "Loss of what was learned from",
        caption,
        axes: ["epoch", "loss"],
        log: true,
        curves: &learned,
    };
    let held_out = Lines {
        title: "Loss of held-out scans",
        caption: "",
        axes: ["epoch", "loss"],
        log: true,
        curves: &watched,
    };
    Ok(figures(&[loss.render(), held_out.render()], false))
}

fn model(models: usize, card: &Card) -> String {
    let Task::BrainAge { encoder, head } = &card.task else { return String::new() };
    let Head { readout, age_range: [youngest, oldest], .. } = head;
    let count = |people: usize| if people == 0 { String::new() } else { format!("{people} people") };
    let readout = if *readout {
        "a linear readout of regional intensities plus what the network adds"
    } else {
        "the network alone"
    };
    facts(
        "The model, of the first fold where there are several",
        &[
            ("Models", models.to_string()),
            ("Sees", format!("{}, {}", encoder.modalities.join(", "), card.preprocessing)),
            (
                "Encoder",
                format!(
                    "{} blocks, width {}, patches of {}³",
                    encoder.shape.depth, encoder.shape.dim, encoder.patch
                ),
            ),
            ("Predicts by", readout.to_owned()),
            ("Learned from", count(card.data.subjects.len())),
            ("Aged", format!("{} to {} years", fixed(*youngest, 1), fixed(*oldest, 1))),
            ("Pretrained on", count(card.data.pretrained_on.len())),
            ("Cache", card.data.cache.clone()),
            ("Split", card.data.split.clone()),
            ("Version", format!("gyrus {}", card.data.version)),
        ],
    )
}
