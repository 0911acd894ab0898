//! Estimates with intervals by category: errors by decade, by grade.
use super::{Area, Scale, colour, figure, line, marker, text};
use crate::{report::html::fixed, study::bootstrap::Estimate};

/// What is compared in every category.
#[derive(Clone, Debug)]
pub struct Dotted {
    /// What it is; may be empty where there is only one.
    pub name: String,
    /// One for each category, where there is one.
    pub values: Vec<Option<Estimate>>,
}

/// A chart of categories along the horizontal axis.
#[derive(Clone, Debug)]
pub struct Dots<'a> {
    /// Its heading.
    pub title: &'a str,
    /// What is said below it; may be empty.
    pub caption: &'a str,
    /// The names of the axes.
    pub axes: [&'a str; 2],
    /// The categories: a name, and what stands below it in small (may be empty).
    pub categories: &'a [(String, String)],
    /// What is compared.
    pub series: &'a [Dotted],
    /// A value with a line of its own, 0 for instance.
    pub reference: Option<f64>,
}

impl Dots<'_> {
    /// The chart; nothing without estimates.
    pub fn render(&self) -> String {
        let values = || self.series.iter().flat_map(|s| s.values.iter().flatten());
        if values().next().is_none() {
            return String::new();
        }
        let several = self.series.len() > 1;
        let legend = if several { 20.0 * (self.series.len() as f64 / 3.0).ceil() } else { 0.0 };
        let area = Area { left: 44.0, right: 510.0, top: 30.0 + legend, bottom: 270.0 + legend };
        let ends = values().flat_map(|e| [e.value, e.low, e.high]).filter(|v| v.is_finite());
        let y = Scale::round(ends.chain(self.reference), [area.bottom, area.top]);
        let mut svg = String::new();
        for (i, series) in self.series.iter().enumerate().filter(|_| several) {
            let (x, y) = (8.0 + (i % 3) as f64 * 170.0, 10.0 + (i / 3) as f64 * 20.0);
            svg += &format!("<g class=\"{}\">\n{}</g>\n", colour(i), marker(i, x, y, &series.name));
            svg += &text("tick", [x + 11.0, y + 4.0], &series.name);
        }
        svg += &area.y_axis(&y, self.axes[1]);
        svg += &line("axis", [area.left, area.bottom], [area.right, area.bottom]);
        if let Some(reference) = self.reference {
            let at = y.at(reference);
            svg += &line("reference", [area.left, at], [area.right, at]);
        }
        let band = (area.right - area.left) / self.categories.len() as f64;
        let apart = (band * 0.6 / self.series.len() as f64).min(16.0);
        for (c, (name, small)) in self.categories.iter().enumerate() {
            let middle = area.left + (c as f64 + 0.5) * band;
            svg += &text("tick middle", [middle, area.bottom + 18.0], name);
            svg += &text("tick middle", [middle, area.bottom + 33.0], small);
            for (i, series) in self.series.iter().enumerate() {
                let Some(Some(e)) = series.values.get(c) else { continue };
                let x = middle + (i as f64 - (self.series.len() - 1) as f64 / 2.0) * apart;
                svg += &format!("<g class=\"{}\">\n", colour(i));
                let mut said = format!("{} {name}: {}", series.name, fixed(e.value, 2));
                if e.low.is_finite() && e.high.is_finite() {
                    svg += &line("whisker", [x, y.at(e.low)], [x, y.at(e.high)]);
                    said += &format!(" ({} to {})", fixed(e.low, 2), fixed(e.high, 2));
                }
                svg += &(marker(i, x, y.at(e.value), said.trim_start()) + "</g>\n");
            }
        }
        let below = area.bottom + if self.categories.iter().any(|c| !c.1.is_empty()) { 52.0 } else { 38.0 };
        svg += &text("tick middle", [f64::midpoint(area.left, area.right), below], self.axes[0]);
        figure(self.title, self.caption, [520.0, below + 8.0], false, &svg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_stand_in_bands_and_an_interval_that_is_unknown_is_not_drawn() {
        let estimate = |value, low, high| Some(Estimate { value, low, high });
        let series = [
            Dotted { name: "a".into(), values: vec![estimate(4.0, 2.0, 6.0), None] },
            Dotted { name: "b".into(), values: vec![None, estimate(0.0, f64::NAN, f64::NAN)] },
        ];
        let categories = [("20s".to_owned(), "n 5".to_owned()), ("30s & up".to_owned(), String::new())];
        let dots = Dots {
            title: "T",
            caption: "",
            axes: ["age", "years"],
            categories: &categories,
            series: &series,
            reference: None,
        };
        let svg = dots.render();
        assert_eq!(svg.matches("class=\"whisker\"").count(), 1, "{svg}");
        // 0 to 6 between 290 and 50; the first band's middle is 160.5, and `a` stands 8 to its left.
        assert!(svg.contains("x1=\"152.5\" y1=\"210.0\" x2=\"152.5\" y2=\"50.0\""), "{svg}");
        assert!(svg.contains("30s &amp; up") && svg.contains("<title>b 30s &amp; up: 0.00</title>"), "{svg}");
        assert_eq!(Dots { series: &[], ..dots }.render(), "");
    }
}
