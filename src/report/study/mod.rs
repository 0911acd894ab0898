//! The page of a study: its arms, how they differ, and what that allows one to say.
mod categories;

use super::{
    chart::{Curve, Forest, Interval, Lines, Point, Scatter},
    html::{Cell, Column, Page, Table, details, figures, fixed, note, numbers, paragraph},
    run::{facts, thousands},
};
use crate::study::{
    arms::Summary,
    bootstrap::Estimate,
    trial::results::{Arm, Compared, Outcome, Results},
};
use categories::{curves, errors, gaps, knowledge, reconstruction, together};

/// The page of what a study found. What is not there is left out.
pub fn page(results: &Results) -> String {
    let mut page = Page::new("Study", &results.title, &results.answer);
    page.section("What can be said", results.reading.iter().map(|text| paragraph(text)).collect::<String>());
    page.section("Arms", arms(results));
    page.section("Differences between arms", differences(results));
    page.section("Predicted and true age", ages(&results.arms));
    page.section("Errors by grade and age", errors(&results.arms));
    page.section("Reconstruction", reconstruction(results));
    page.section("Learning curves", curves(results));
    page.section("What frozen features know", knowledge(results));
    page.section("Brain-age gap", gaps(&results.gaps));
    page.section("Loss", losses(&results.arms));
    page.section("Units that failed", failed(results));
    page.section("How to repeat it", repeat(results));
    page.render()
}

/// An estimate with its interval; sorts by the estimate.
fn estimate(e: Option<Estimate>, digits: usize) -> Cell {
    let Some(Estimate { value, low, high }) = e else { return Cell::keyed("n/a", f64::NAN) };
    let [said, low, high] = [value, low, high].map(|v| fixed(v, digits));
    Cell::keyed(&format!("{said} ({low} to {high})"), value)
}

fn arms(results: &Results) -> String {
    let has = |of: fn(&Arm) -> Option<&Summary>| results.arms.iter().any(|arm| of(arm).is_some());
    let (tuned, frozen) = (has(|a| a.fine_tuned.as_ref()), has(|a| a.frozen.as_ref()));
    let mut columns = vec![
        ("Arm", Column::Text),
        ("Pretrained on", Column::Words),
        ("Scans", Column::Number),
        ("People", Column::Number),
        ("Age", Column::Number),
        ("Updates", Column::Number),
    ];
    if tuned {
        columns.push(("MAE fine-tuned", Column::Number));
    }
    if frozen {
        columns.push(("MAE frozen", Column::Number));
    }
    if tuned {
        columns.extend([
            ("Over seeds", Column::Number),
            ("r", Column::Number),
            ("R²", Column::Number),
            ("Bias", Column::Number),
        ]);
    }
    let caption = "The arms. MAE: mean absolute error of age in years with its 95 % interval over people and seeds; over \
                   seeds, r, R² and bias: of the fine-tuned networks";
    let mut table = Table::new(caption, &columns);
    let row = |name: &str, label: &str, pretrained: [Cell; 4], of: [Option<&Summary>; 2]| {
        let mut cells = vec![Cell::text(name), Cell::text(label)];
        cells.extend(pretrained);
        let [fine_tuned, at_rest] = of;
        if tuned {
            cells.push(estimate(fine_tuned.map(|s| s.mae), 2));
        }
        if frozen {
            cells.push(estimate(at_rest.map(|s| s.mae), 2));
        }
        if tuned {
            let number = |value: Option<f64>| Cell::number(value.unwrap_or(f64::NAN), 2);
            cells.extend([
                number(fine_tuned.map(|s| s.mae_sd_over_seeds)),
                number(fine_tuned.map(|s| s.pearson_r.value)),
                number(fine_tuned.map(|s| s.r2.value)),
                number(fine_tuned.map(|s| s.bias)),
            ]);
        }
        cells
    };
    let blank = || Cell::keyed("", f64::NAN);
    for arm in &results.arms {
        let age = arm.age.map_or_else(blank, |[mean, sd]| {
            Cell::keyed(&format!("{} ± {}", fixed(mean, 1), fixed(sd, 1)), mean)
        });
        let few =
            |n: f64| if n > 0.0 { Cell::keyed(&thousands(n.round() as usize), n) } else { Cell::count(0) };
        let steps =
            Cell::keyed(&thousands(usize::try_from(arm.steps).unwrap_or(usize::MAX)), arm.steps as f64);
        let pretrained = [few(arm.scans), few(arm.subjects), age, steps];
        table.row(row(&arm.name, &arm.label, pretrained, [arm.fine_tuned.as_ref(), arm.frozen.as_ref()]));
    }
    if let Some(mean) = &results.mean_predictor {
        let pretrained = [blank(), blank(), blank(), blank()];
        table.row(row(
            "mean",
            "predicting the mean age of those who were learned from",
            pretrained,
            [Some(mean), None],
        ));
    }
    if results.arms.is_empty() {
        return String::new();
    }
    let first = results.arms.iter().find_map(|a| a.fine_tuned.as_ref().or(a.frozen.as_ref()));
    let [done, all] = results.done;
    let mut few = vec![(results.arms.len().to_string(), "arms", String::new())];
    if let Some(s) = first {
        few.push((thousands(s.subjects), "people tested", format!("{} scans", thousands(s.scans))));
        few.push((s.seeds.to_string(), "seeds", String::new()));
    }
    few.push((done.to_string(), "units trained", format!("of {all}")));
    numbers(&few) + &table.render() + &absolute(results)
}

/// The errors themselves, beside predicting the mean.
fn absolute(results: &Results) -> String {
    let rows = |of: fn(&Arm) -> Option<&Summary>| -> Vec<Interval> {
        let rows = results.arms.iter().filter_map(|arm| {
            Some(Interval { label: arm.name.clone(), estimate: Some(of(arm)?.mae), note: String::new() })
        });
        rows.collect()
    };
    let zero = results.mean_predictor.as_ref().map(|s| s.mae.value);
    let sides = if zero.is_some() { ["", "worse than the mean age"] } else { ["", ""] };
    let forest = |title, rows: &[Interval]| {
        let axis = "mean absolute error, years";
        Forest { title, caption: "", axis, zero, sides, notes: "", digits: 2, rows }.render()
    };
    forest("Error of the fine-tuned networks", &rows(|a| a.fine_tuned.as_ref()))
        + &forest("Error of ridge regression on frozen features", &rows(|a| a.frozen.as_ref()))
}

/// A p-value as it is read: three decimals, and no zero.
fn p_value(p: f64) -> String {
    if !p.is_finite() {
        "n/a".to_owned()
    } else if p < 0.001 {
        "< 0.001".to_owned()
    } else {
        fixed(p, 3)
    }
}

fn differences(results: &Results) -> String {
    if results.comparisons.is_empty() {
        return String::new();
    }
    let mut html = String::new();
    for (outcome, title) in [
        (Outcome::FineTuned, "Fine-tuned networks: the primary outcome"),
        (Outcome::Frozen, "Ridge regression on frozen features"),
    ] {
        let row = |c: &&Compared| Interval {
            label: format!("{} \u{2212} {}", c.arm, c.with),
            estimate: Some(c.comparison.difference),
            note: if c.shown { format!("{} \u{2217}", p_value(c.p_holm)) } else { p_value(c.p_holm) },
        };
        let rows: Vec<Interval> =
            results.comparisons.iter().filter(|c| c.outcome == outcome).map(|c| row(&c)).collect();
        html += &Forest {
            title,
            caption: "Paired differences of absolute errors on the same people. p by Holm's method over this family; \u{2217} \
                      marks a difference that can be claimed.",
            axis: "difference of mean absolute errors, years",
            zero: Some(0.0),
            sides: ["better", "worse"],
            notes: "p (Holm)",
            digits: 2,
            rows: &rows,
        }
        .render();
    }
    let columns = [
        ("Difference", Column::Text),
        ("Outcome", Column::Text),
        ("Years (95 % interval)", Column::Number),
        ("People", Column::Number),
        ("Runs", Column::Number),
        ("p people", Column::Number),
        ("p runs", Column::Number),
        ("p crossed", Column::Number),
        ("p", Column::Number),
        ("p (Holm)", Column::Number),
        ("Claimed", Column::Text),
    ];
    let mut table =
        Table::new("Every comparison with all of its p-values; p is the largest of the three", &columns);
    for c in &results.comparisons {
        let d = &c.comparison;
        let outcome = match c.outcome {
            Outcome::FineTuned => "fine-tuned",
            Outcome::Frozen => "frozen",
        };
        let mut cells = vec![
            Cell::text(&format!("{} \u{2212} {}", c.arm, c.with)),
            Cell::text(outcome),
            estimate(Some(d.difference), 2),
            Cell::count(d.subjects),
            Cell::count(d.runs),
        ];
        let all = [d.p_subjects, d.p_runs, d.p_crossed, d.p, c.p_holm];
        cells.extend(all.map(|p| Cell::keyed(&p_value(p), p)));
        cells.push(Cell::text(if c.shown { "yes" } else { "no" }));
        table.row(cells);
    }
    html + &details("All comparisons", &table.render())
}

fn ages(arms: &[Arm]) -> String {
    let point = |[age, predicted]: &[f64; 2]| Point {
        x: *age,
        y: *predicted,
        label: format!("{} years, predicted {}", fixed(*age, 1), fixed(*predicted, 1)),
    };
    let all = || arms.iter().flat_map(|arm| arm.points.iter().flatten().copied());
    let range = [all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max)];
    let charts: Vec<String> = arms
        .iter()
        .filter(|arm| !arm.points.is_empty())
        .map(|arm| {
            let points: Vec<Point> = arm.points.iter().map(point).collect();
            let (caption, axes) = ("", ["true age, years", "predicted age, years"]);
            Scatter {
                title: &arm.name,
                caption,
                axes,
                points: &points,
                fit: None,
                range: Some(range),
                small: true,
            }
            .render()
        })
        .collect();
    if charts.is_empty() {
        return String::new();
    }
    note(
        "A point a tested scan: the mean over seeds of what the fine-tuned networks predict. All charts have the same axes.",
    ) + &figures(&charts, true)
}

fn losses(arms: &[Arm]) -> String {
    let draw = |title: &str, caption: &str, of: fn(&Arm) -> &Vec<[f64; 2]>| -> Vec<String> {
        let curves: Vec<Curve> = (arms.iter().filter(|a| !of(a).is_empty()))
            .map(|a| Curve { name: a.name.clone(), points: of(a).clone(), ..Curve::default() })
            .collect();
        let chart = |some: Vec<&Curve>| {
            let curves: Vec<Curve> = some.into_iter().cloned().collect();
            Lines { title, caption, axes: ["update", "loss"], log: true, curves: &curves }.render()
        };
        together(&curves).into_iter().map(chart).collect()
    };
    let pretraining =
        draw("Pretraining", "Mean over units; each arm's loss is on its own scans.", |a| &a.loss);
    let tuning = draw("Fine-tuning", "Mean over units and folds.", |a| &a.tuning_loss);
    figures(&[pretraining, tuning].concat(), false)
}

fn failed(results: &Results) -> String {
    if results.failed.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new("These are missing from all numbers", &[("Unit", Column::Text), ("Why", Column::Words)]);
    results.failed.iter().for_each(|(unit, why)| table.row(vec![Cell::text(unit), Cell::text(why)]));
    table.render()
}

fn repeat(results: &Results) -> String {
    let table = |caption: &str, rows: &[(String, String)]| {
        let rows: Vec<(&str, String)> =
            rows.iter().map(|(what, value)| (what.as_str(), value.clone())).collect();
        if rows.is_empty() { String::new() } else { facts(caption, &rows) }
    };
    let tables =
        table("How arms were compared", &results.design) + &table("What was used", &results.provenance);
    if tables.is_empty() {
        tables
    } else {
        tables + &note("The numbers of this page are in results.json beside it.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::{
        arms::{Tested, summary},
        comparison::{Unit, compare},
        trial::results::{ByTier, CurvePoint},
    };

    fn tested(bias: f64) -> Vec<Tested> {
        let row = |i: u32, seed: u64| {
            let age = f64::from(20 + 3 * i);
            let prediction = age + bias + f64::from(i * 7 % 5) + seed as f64 / 10.0;
            Tested { subject: i.to_string(), scan: i.to_string(), age, prediction, seed, fold: 1 }
        };
        (0..12).flat_map(|i| [row(i, 1), row(i, 2)]).collect()
    }

    fn arm(name: &str) -> Arm {
        Arm {
            name: name.into(),
            label: "all <scans>".into(),
            scans: 1200.0,
            subjects: 100.0,
            age: Some([50.0, 10.0]),
            steps: 5000,
            fine_tuned: Some(summary(&tested(1.0), 0)),
            frozen: None,
            points: vec![[50.0, 51.0], [60.0, 58.0]],
            loss: vec![[1.0, 1.0], [2.0, 0.5]],
            tuning_loss: Vec::new(),
            by_grade: Vec::new(),
        }
    }

    fn empty() -> Results {
        Results {
            title: "A & B".into(),
            answer: "Not yet.".into(),
            reading: Vec::new(),
            design: Vec::new(),
            done: [0, 4],
            arms: Vec::new(),
            mean_predictor: None,
            comparisons: Vec::new(),
            reconstruction: Vec::new(),
            curves: Vec::new(),
            knowledge: Vec::new(),
            gaps: Vec::new(),
            examples: Vec::new(),
            failed: Vec::new(),
            provenance: Vec::new(),
        }
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let html = page(&empty());
        assert!(html.contains("A &amp; B") && html.contains("Not yet."));
        assert_eq!(html.matches("<section").count(), 0, "{html}");
    }

    #[test]
    fn arms_are_compared_and_those_that_are_many_drawn_with_the_first() {
        let comparison = compare(&tested(3.0), &tested(0.0), Unit::Seed, 0).unwrap();
        let compared = |arm: &str, outcome, p_holm, shown| Compared {
            arm: arm.into(),
            with: "arm 0".into(),
            outcome,
            comparison,
            p_holm,
            shown,
        };
        let estimate = Estimate { value: 0.5, low: 0.4, high: 0.6 };
        let tier = |arm: &str| ByTier { arm: arm.into(), tier: "worst".into(), scans: 9, mse: estimate };
        let point = |scans| CurvePoint { arm: "arm 0".into(), scans, mae: estimate };
        let results = Results {
            done: [4, 4],
            arms: (0..9).map(|i| arm(&format!("arm {i}"))).collect(),
            mean_predictor: Some(summary(&tested(9.0), 0)),
            comparisons: vec![
                compared("arm 1", Outcome::FineTuned, 0.0004, true),
                compared("arm 2", Outcome::Frozen, f64::NAN, false),
            ],
            reconstruction: vec![tier("arm 0"), tier("arm 1")],
            curves: vec![point(20.0), point(10.0)],
            failed: vec![("arm 3/seed-1".into(), "<no disk>".into())],
            ..empty()
        };
        let html = page(&results);
        assert!(html.contains("&lt; 0.001 \u{2217}") && html.contains("arm 1 \u{2212} arm 0"), "no p-value");
        assert!(
            html.contains("all &lt;scans&gt;") && html.contains("&lt;no disk&gt;") && html.contains("1,200")
        );
        // Nine arms in two charts: the first with six others, then with two.
        let losses: Vec<&str> = html.split("<h3>Pretraining</h3>").skip(1).collect();
        assert_eq!(losses.len(), 2);
        let names =
            |html: &str, i: usize| html.split("</svg>").next().unwrap().contains(&format!(">arm {i}</text>"));
        assert!(names(losses[0], 0) && names(losses[0], 6) && !names(losses[0], 7));
        assert!(names(losses[1], 0) && names(losses[1], 8) && !names(losses[1], 6));
        assert!(!html.contains("Brain-age gap"));
        // In ascending order, whatever order they came in.
        assert!(
            html.contains("arm 0: 0.5 at 10") && html.find("at 10<").unwrap() < html.find("at 20<").unwrap()
        );
    }
}
