//! What is shown by category: errors by grade and by decade, reconstruction by tier, learning curves, what frozen features
//! know, and the gap.
use super::{estimate, p_value};
use crate::report::{
    chart::{Curve, Dots, Dotted, Lines},
    html::{Cell, Column, Table, figures, note, paragraph},
    viewer,
};
use crate::study::{
    bootstrap::Estimate,
    trial::results::{Arm, Example, Gap, Results},
};

/// Arms in one chart, as many as there are colours; more are drawn in several, each with the first arm.
const TOGETHER: usize = 7;

/// Some at a time, each time with the first.
pub(super) fn together<T>(all: &[T]) -> Vec<Vec<&T>> {
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

pub(super) fn errors(arms: &[Arm]) -> String {
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

pub(super) fn reconstruction(results: &Results) -> String {
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

pub(super) fn curves(results: &Results) -> String {
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

pub(super) fn knowledge(results: &Results) -> String {
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

pub(super) fn gaps(gaps: &[Gap]) -> String {
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
