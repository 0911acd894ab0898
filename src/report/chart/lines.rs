//! Numbers along a course: losses over steps, errors over the number of people learned from.
use super::{Area, Scale, colour, dash, escape, figure, line, marker, text};
use std::fmt::Write;

/// One course.
#[derive(Clone, Debug, Default)]
pub struct Curve {
    /// What it is.
    pub name: String,
    /// Where it goes, from left to right; what is not finite is a gap.
    pub points: Vec<[f64; 2]>,
    /// An interval around each point; empty for none.
    pub intervals: Vec<[f64; 2]>,
    /// Whether its points are marked, as few points should be.
    pub marked: bool,
    /// The same course before it was smoothed, drawn faintly.
    pub behind: Vec<[f64; 2]>,
}

/// A chart of several courses, each named where it ends.
#[derive(Clone, Debug)]
pub struct Lines<'a> {
    /// Its heading.
    pub title: &'a str,
    /// What is said below it; may be empty.
    pub caption: &'a str,
    /// The names of the axes.
    pub axes: [&'a str; 2],
    /// Whether the vertical axis is logarithmic.
    pub log: bool,
    /// The courses.
    pub curves: &'a [Curve],
}

/// Points of a curve that the picture can still tell apart.
const DRAWN: usize = 400;
/// Between names at the right.
const LEADING: f64 = 15.0;

impl Lines<'_> {
    /// The chart; nothing without points.
    pub fn render(&self) -> String {
        let all = |axis: usize| {
            let points = self.curves.iter().flat_map(|c| c.points.iter().chain(&c.behind));
            points.map(move |p| p[axis]).filter(|v| v.is_finite())
        };
        if all(1).next().is_none() {
            return String::new();
        }
        let longest = self.curves.iter().map(|c| c.name.chars().count()).max().unwrap_or_default();
        let names = if self.curves.len() == 1 { 12.0 } else { (longest as f64 * 6.8 + 38.0).min(178.0) };
        let area = Area { left: 44.0, right: 520.0 - names, top: 30.0, bottom: 270.0 };
        let intervals = self.curves.iter().flat_map(|c| c.intervals.iter().flatten().copied());
        let x = Scale::exact(all(0), [area.left, area.right]);
        let values = all(1).chain(intervals);
        let places = [area.bottom, area.top];
        let y = if self.log { Scale::log(values, places) } else { Scale::round(values, places) };

        let mut svg = area.y_axis(&y, self.axes[1]) + &area.x_axis(&x, self.axes[0]);
        let mut ends = Vec::new();
        for (i, curve) in self.curves.iter().enumerate() {
            // Intervals at the same place stand beside each other.
            let aside = if curve.intervals.is_empty() {
                0.0
            } else {
                4.0 * (i as f64 - (self.curves.len() - 1) as f64 / 2.0)
            };
            let place = |[px, py]: [f64; 2]| [x.at(px) + aside, y.at(py)];
            let _ = writeln!(svg, "<g class=\"{}\"><title>{}</title>", colour(i), escape(&curve.name));
            svg += &course("curve faint", "", curve.behind.iter().map(|p| place(*p)).collect());
            svg += &course("curve", dash(i), curve.points.iter().map(|p| place(*p)).collect());
            for (p, [low, high]) in curve.points.iter().zip(&curve.intervals) {
                let at = x.at(p[0]) + aside;
                svg += &line("whisker", [at, y.at(*low)], [at, y.at(*high)]);
            }
            for p in curve.points.iter().filter(|p| curve.marked && p[1].is_finite()) {
                let [px, py] = place(*p);
                svg += &marker(i, px, py, &format!("{}: {} at {}", curve.name, p[1], p[0]));
            }
            svg += "</g>\n";
            if let Some(last) = curve.points.iter().rfind(|p| y.at(p[1]).is_finite()) {
                ends.push((i, place(*last)));
            }
        }
        if self.curves.len() > 1 {
            svg += &self.names(ends, area.right, [area.top, area.bottom]);
        }
        figure(self.title, self.caption, [520.0, 314.0], false, &svg)
    }

    /// The names of the curves at their ends, moved apart, each with its line and marker.
    fn names(&self, mut ends: Vec<(usize, [f64; 2])>, right: f64, [top, bottom]: [f64; 2]) -> String {
        ends.sort_by(|a, b| a.1[1].total_cmp(&b.1[1]));
        let mut at: Vec<f64> = Vec::new();
        for (_, [_, y]) in &ends {
            at.push(at.last().map_or(y.max(top), |above: &f64| y.max(above + LEADING)));
        }
        // What was pushed below the chart goes up again, and what is in its way with it.
        let mut floor = bottom;
        for y in at.iter_mut().rev() {
            *y = y.min(floor);
            floor = *y - LEADING;
        }
        let mut svg = String::new();
        for ((i, [x, y]), named) in ends.into_iter().zip(at) {
            svg += &line("leader", [x + 3.0, y], [right + 8.0, named]);
            let _ = writeln!(svg, "<g class=\"{}\">", colour(i));
            let (from, to) = (right + 8.0, right + 26.0);
            svg += &course("curve", dash(i), vec![[from, named], [to, named]]);
            if self.curves[i].marked {
                svg += &marker(i, f64::midpoint(from, to), named, &self.curves[i].name);
            }
            svg += "</g>\n";
            svg += &text("tick", [right + 31.0, named + 4.0], &self.curves[i].name);
        }
        svg
    }
}

/// A line through places; those that are not finite interrupt it. Of very many, evenly spaced ones are drawn.
fn course(class: &str, dash: &str, places: Vec<[f64; 2]>) -> String {
    let every = places.len().div_ceil(DRAWN).max(1);
    let last = places.len().saturating_sub(1);
    let (mut path, mut pen) = (String::new(), false);
    for (_, [x, y]) in places.into_iter().enumerate().filter(|(i, _)| i % every == 0 || *i == last) {
        let there = x.is_finite() && y.is_finite();
        if there {
            let _ = write!(path, "{}{x:.1} {y:.1}", if pen { "L" } else { "M" });
        }
        pen = there;
    }
    let dash = if dash.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dash}\"") };
    if path.is_empty() { path } else { format!("<path class=\"{class}\"{dash} d=\"{path}\"/>\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(name: &str, points: &[[f64; 2]]) -> Curve {
        Curve { name: name.into(), points: points.to_vec(), ..Curve::default() }
    }

    #[test]
    fn a_curve_goes_from_edge_to_edge_and_gaps_interrupt_it() {
        let curves = [curve("loss", &[[0.0, 1.0], [5.0, f64::NAN], [10.0, 0.0]])];
        let lines = Lines { title: "T", caption: "", axes: ["step", "loss"], log: false, curves: &curves };
        let svg = lines.render();
        assert!(svg.contains("d=\"M44.0 30.0M508.0 270.0\""), "{svg}");
        // A single curve is named by its axis.
        assert!(!svg.contains(">loss</text>\n<text class=\"tick\" x=\"5"), "{svg}");
        assert_eq!(Lines { curves: &[curve("x", &[])], ..lines }.render(), "");
    }

    #[test]
    fn names_of_curves_that_end_together_stand_apart_inside_the_chart() {
        let curves: Vec<Curve> =
            (0..6).map(|i| curve(&format!("arm <{i}>"), &[[0.0, 0.0], [1.0, 0.0]])).collect();
        let svg = Lines { title: "T", caption: "", axes: ["x", "y"], log: false, curves: &curves }.render();
        let mut at: Vec<f64> = Vec::new();
        let texts = svg.split("<text class=\"tick\" x=\"").skip(1);
        let names = texts.filter(|t| t.split("</text>").next().is_some_and(|t| t.contains("arm ")));
        for part in names {
            at.push(part.split("y=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap());
        }
        assert_eq!(at.len(), 6);
        assert!(at.windows(2).all(|w| w[1] - w[0] >= LEADING - 0.11), "{at:?}");
        assert!(at.iter().all(|y| (20.0..=280.0).contains(y)), "{at:?}");
        assert!(svg.contains("arm &lt;0&gt;") && !svg.contains("arm <0>"));
    }

    #[test]
    fn long_curves_are_thinned_and_keep_their_end() {
        let points: Vec<[f64; 2]> = (0..100_000).map(|i| [f64::from(i), f64::from(i % 7)]).collect();
        let path = course("c", "", points);
        assert!(path.matches('L').count() <= DRAWN + 1 && path.contains("99999.0"));
    }
}
