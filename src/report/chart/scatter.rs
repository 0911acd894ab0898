//! One number against another, on the same scale both ways: predicted against true age.
use super::{Area, Scale, figure, line, text};
use crate::report::html::escape;
use std::fmt::Write;

/// One scan.
#[derive(Clone, Debug)]
pub struct Point {
    /// Along the horizontal axis.
    pub x: f64,
    /// Along the vertical one.
    pub y: f64,
    /// What it is.
    pub label: String,
}

/// A square chart with the line on which both are equal.
#[derive(Clone, Debug)]
pub struct Scatter<'a> {
    /// Its heading.
    pub title: &'a str,
    /// What is said below it; may be empty.
    pub caption: &'a str,
    /// The names of the axes.
    pub axes: [&'a str; 2],
    /// The points.
    pub points: &'a [Point],
    /// Slope and intercept of a line through them.
    pub fit: Option<[f64; 2]>,
    /// The values that both axes show, so that charts beside each other can be compared; by default those of the
    /// points.
    pub range: Option<[f64; 2]>,
    /// Half as large, for many beside each other.
    pub small: bool,
}

impl Scatter<'_> {
    /// The chart; nothing without points.
    pub fn render(&self) -> String {
        if self.points.is_empty() {
            return String::new();
        }
        let (side, dot) = if self.small { (206.0, 2.2) } else { (370.0, 3.4) };
        let area = Area { left: 38.0, right: 38.0 + side, top: 30.0, bottom: 30.0 + side };
        let values: Vec<f64> = match self.range {
            Some(range) => range.to_vec(),
            None => self.points.iter().flat_map(|p| [p.x, p.y]).collect(),
        };
        let x = Scale::round(values.iter().copied(), [area.left, area.right]);
        let y = Scale::round(values, [area.bottom, area.top]);
        let mut svg = area.y_axis(&y, self.axes[1]) + &area.x_axis(&x, self.axes[0]);
        for tick in x.ticks() {
            let x = x.at(tick.value);
            svg += &line("grid", [x, area.top], [x, area.bottom]);
        }
        svg += &line("reference", [area.left, area.bottom], [area.right, area.top]);
        svg += &text("tick end", [area.right, area.top - 7.0], "equal");
        if let Some([slope, intercept]) = self.fit.filter(|fit| fit.iter().all(|v| v.is_finite())) {
            let ages = self.points.iter().map(|p| p.x);
            let [low, high] = ages.fold([f64::MAX, f64::MIN], |[l, h], v| [l.min(v), h.max(v)]);
            let end = |v: f64| [x.at(v), y.at(slope * v + intercept)];
            svg += &line("fit", end(low), end(high));
            svg += &text("tick", [end(high)[0] + 4.0, end(high)[1] + 14.0], "fit");
        }
        svg += "<g class=\"c0\">\n";
        for p in self.points {
            let (x, y, label) = (x.at(p.x), y.at(p.y), escape(&p.label));
            let _ = writeln!(
                svg,
                "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{dot}\"><title>{label}</title></circle>"
            );
        }
        figure(self.title, self.caption, [area.right + 22.0, area.bottom + 44.0], false, &(svg + "</g>\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_land_where_they_should_and_labels_are_escaped() {
        let point = |x, y| Point { x, y, label: "a<b".into() };
        let points = [point(20.0, 80.0), point(50.0, 50.0)];
        let scatter = Scatter {
            title: "T",
            caption: "",
            axes: ["true", "predicted"],
            points: &points,
            fit: Some([0.5, 25.0]),
            range: Some([20.0, 80.0]),
            small: false,
        };
        let svg = scatter.render();
        assert!(svg.contains("cx=\"38.0\" cy=\"30.0\" r=\"3.4\"><title>a&lt;b</title>"), "{svg}");
        assert!(svg.contains("cx=\"223.0\" cy=\"215.0\""), "{svg}");
        assert!(svg.contains("class=\"fit\"") && svg.contains("aria-label=\"T\""));
        assert_eq!(Scatter { points: &[], ..scatter }.render(), "");
    }
}
