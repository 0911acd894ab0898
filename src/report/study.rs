//! The page of a study: its arms, how they differ, and what that allows one to say.
use super::{
    chart::{Curve, Dots, Dotted, Forest, Interval, Lines, Point, Scatter},
    html::{Cell, Column, Page, Table, details, figures, fixed, note, numbers, paragraph},
    run::{facts, thousands},
    viewer,
};
use crate::study::{
    arms::Summary,
    bootstrap::Estimate,
    trial::results::{Arm, Compared, Example, Gap, Outcome, Results},
};

/// Arms in one chart, as many as there are colours; more are drawn in several, each with the first arm.
const TOGETHER: usize = 7;

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

/// Some at a time, each time with the first.
fn together<T>(all: &[T]) -> Vec<Vec<&T>> {
    let Some((first, others)) = all.split_first() else { return Vec::new() };
    if others.is_empty() {
        return vec![vec![first]];
    }
    others.chunks(TOGETHER - 1).map(|some| std::iter::once(first).chain(some).collect()).collect()
}

/// A chart of categories for arms: each has some estimates, by the name of their category.
struct ByCategory<'a> {
    title: &'a str,
    caption: &'a str,
    axes: [&'a str; 2],
    /// (name, what stands below it).
    categories: Vec<(String, String)>,
    /// (arm, (category, estimate)).
    arms: Vec<(String, Vec<(String, Estimate)>)>,
}

impl ByCategory<'_> {
    fn render(&self) -> Vec<String> {
        let ByCategory { title, caption, axes, categories, arms } = self;
        let series = |(name, values): &(String, Vec<(String, Estimate)>)| {
            let of = |(category, _): &(String, String)| values.iter().find(|v| v.0 == *category).map(|v| v.1);
            Dotted { name: name.clone(), values: categories.iter().map(of).collect() }
        };
        let draw = |some: Vec<&(String, Vec<(String, Estimate)>)>| {
            let series: Vec<Dotted> = some.into_iter().map(series).collect();
            Dots { title, caption, axes: *axes, categories, series: &series, reference: None }.render()
        };
        together(arms).into_iter().map(draw).collect()
    }
}

/// The different names in the order they come.
fn distinct<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut distinct: Vec<String> = Vec::new();
    for name in names {
        if !distinct.contains(name) {
            distinct.push(name.clone());
        }
    }
    distinct
}

fn errors(arms: &[Arm]) -> String {
    let axis = "mean absolute error, years";
    let grades = distinct(arms.iter().flat_map(|a| a.by_grade.iter().map(|g| &g.0)));
    let scans = |grade: &String| {
        let found = arms.iter().flat_map(|a| &a.by_grade).find(|g| g.0 == *grade);
        (grade.clone(), found.map_or(String::new(), |g| format!("n {}", g.1)))
    };
    let by_grade = ByCategory {
        title: "Error by grade of the tested scan",
        caption: "Fine-tuned networks, with 95 % intervals over people.",
        axes: ["grade", axis],
        categories: grades.iter().map(scans).collect(),
        arms: (arms.iter().filter(|a| !a.by_grade.is_empty()))
            .map(|a| (a.name.clone(), a.by_grade.iter().map(|(grade, _, e)| (grade.clone(), *e)).collect()))
            .collect(),
    };
    let decade = |from: u32| format!("{from}\u{2013}{}", from + 9);
    let tuned = || arms.iter().filter_map(|a| Some((a, a.fine_tuned.as_ref()?)));
    let mut decades: Vec<(u32, usize)> =
        tuned().flat_map(|(_, s)| s.decades.iter().map(|d| (d.from, d.scans))).collect();
    decades.sort_unstable();
    decades.dedup_by_key(|d| d.0);
    let bare = |value: f64| Estimate { value, low: f64::NAN, high: f64::NAN };
    let by_age = ByCategory {
        title: "Error by age",
        caption: "Fine-tuned networks, over the predictions of all seeds.",
        axes: ["true age, years", axis],
        categories: decades.iter().map(|(from, scans)| (decade(*from), format!("n {scans}"))).collect(),
        arms: tuned()
            .map(|(a, s)| (a.name.clone(), s.decades.iter().map(|d| (decade(d.from), bare(d.mae))).collect()))
            .collect(),
    };
    figures(&[by_grade.render(), by_age.render()].concat(), false)
}

fn reconstruction(results: &Results) -> String {
    let found = &results.reconstruction;
    let tiers = distinct(found.iter().map(|r| &r.tier));
    let scans = |tier: &String| {
        let found = found.iter().find(|r| r.tier == *tier);
        (tier.clone(), found.map_or(String::new(), |r| format!("n {}", r.scans)))
    };
    let of_arm = |arm: String| {
        let values = found.iter().filter(|r| r.arm == arm).map(|r| (r.tier.clone(), r.mse)).collect();
        (arm, values)
    };
    let charts = ByCategory {
        title: "Reconstruction error by tier",
        caption: "Mean squared error over removed brain voxels of scans that were not learned from, of intensities with SD \
                  1, with 95 % intervals over people.",
        axes: ["tier of the scan", "mean squared error"],
        categories: tiers.iter().map(scans).collect(),
        arms: distinct(found.iter().map(|r| &r.arm)).into_iter().map(of_arm).collect(),
    };
    let examples: Vec<&Example> = results.examples.iter().collect();
    let caption = "A scan of each tier that the model did not learn from. What was removed is slate in the middle; \
                   reconstructions are predicted there, and the original elsewhere.";
    figures(&charts.render(), false) + &viewer::figure(&examples, caption)
}

fn curves(results: &Results) -> String {
    let of_arm = |arm: String| {
        let mut points: Vec<(f64, Estimate)> =
            results.curves.iter().filter(|c| c.arm == arm).map(|c| (c.scans, c.mae)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Curve {
            name: arm,
            intervals: points.iter().map(|(_, e)| [e.low, e.high]).collect(),
            points: points.into_iter().map(|(scans, e)| [scans, e.value]).collect(),
            marked: true,
            behind: Vec::new(),
        }
    };
    let curves: Vec<Curve> =
        distinct(results.curves.iter().map(|c| &c.arm)).into_iter().map(of_arm).collect();
    let draw = |some: Vec<&Curve>| {
        let curves: Vec<Curve> = some.into_iter().cloned().collect();
        let caption = "Ages by ridge regression on frozen features, with 95 % intervals.";
        let axes = ["scans pretrained on", "mean absolute error, years"];
        Lines {
            title: "Error by the number of scans pretrained on",
            caption,
            axes,
            log: false,
            curves: &curves,
        }
        .render()
    };
    figures(&together(&curves).into_iter().map(draw).collect::<Vec<_>>(), false)
}

fn knowledge(results: &Results) -> String {
    if results.knowledge.is_empty() {
        return String::new();
    }
    let columns = [
        ("Arm", Column::Text),
        ("What is read", Column::Text),
        ("Measured by", Column::Text),
        ("Value", Column::Number),
        ("By chance", Column::Number),
        ("p", Column::Number),
    ];
    let mut table = Table::new(
        "What else than age ridge regression reads from frozen features, cross-validated",
        &columns,
    );
    for k in &results.knowledge {
        let p = k.p.unwrap_or(f64::NAN);
        table.row(vec![
            Cell::text(&k.arm),
            Cell::text(&k.what),
            Cell::text(&k.measure),
            Cell::number(k.value, 2),
            Cell::number(k.chance, 2),
            Cell::keyed(&p_value(p), p),
        ]);
    }
    note("A network that knows the site or the quality of a scan can mistake them for age.") + &table.render()
}

fn gaps(gaps: &[Gap]) -> String {
    if gaps.is_empty() {
        return String::new();
    }
    let columns = [
        ("Arm", Column::Text),
        ("Correction", Column::Text),
        ("Mean gap", Column::Number),
        ("r with age", Column::Number),
        ("Years by SD of quality", Column::Number),
    ];
    let mut table = Table::new("The gap: predicted minus true age, years, mean over seeds", &columns);
    for gap in gaps {
        table.row(vec![
            Cell::text(&gap.arm),
            Cell::text(&gap.correction),
            Cell::number(gap.mean, 2),
            Cell::number(gap.age_r, 2),
            estimate(gap.quality_slope, 2),
        ]);
    }
    let corrections = distinct(gaps.iter().map(|g| &g.correction));
    let charts = corrections.iter().flat_map(|correction| {
        let of = || gaps.iter().filter(|g| g.correction == *correction && !g.groups.is_empty());
        let groups = distinct(of().flat_map(|g| g.groups.iter().map(|group| &group.0)));
        let people = |name: &String| {
            let found = of().flat_map(|g| &g.groups).find(|group| group.0 == *name);
            (name.clone(), found.map_or(String::new(), |group| format!("n {}", group.1)))
        };
        ByCategory {
            title: &format!("Gap by diagnosis, {correction}"),
            caption: "Means with 95 % intervals over people.",
            axes: ["diagnosis", "gap, years"],
            categories: groups.iter().map(people).collect(),
            arms: of()
                .map(|g| (g.arm.clone(), g.groups.iter().map(|(name, _, e)| (name.clone(), *e)).collect()))
                .collect(),
        }
        .render()
    });
    let charts: Vec<String> = charts.collect();
    paragraph(
        "Predictions are pulled towards the mean age, so the raw gap falls with age. Corrections are fitted on other people \
         than those they are applied to.",
    ) + &table.render()
        + &figures(&charts, false)
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
