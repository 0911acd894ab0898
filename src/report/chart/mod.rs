//! Charts, as SVG that stands in a page and takes its colours from the page's style.
//!
//! Series differ in colour, marker and dash; every mark has a title that a pointer or a screen reader finds.
mod dots;
mod forest;
mod histogram;
mod lines;
mod scale;
mod scatter;

pub use dots::{Dots, Dotted};
pub use forest::{Forest, Interval};
pub use histogram::{Bars, Histogram};
pub use lines::{Curve, Lines};
pub use scatter::{Point, Scatter};

use super::html::escape;
use scale::Scale;

/// Colours and markers there are; further series begin again.
const SERIES: usize = 7;

/// The class that gives series number `i` its colour.
fn colour(i: usize) -> String {
    format!("c{}", i % SERIES)
}

/// The marker of series number `i` around (`x`, `y`): its shape is its own.
fn marker(i: usize, x: f64, y: f64, title: &str) -> String {
    let r = 4.2;
    let shape = match i % SERIES {
        0 => format!("<circle class=\"mark\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r}\">"),
        1 => polygon(x, y, &[(0.0, -1.25), (1.15, 0.85), (-1.15, 0.85)], r),
        2 => polygon(x, y, &[(-0.95, -0.95), (0.95, -0.95), (0.95, 0.95), (-0.95, 0.95)], r),
        3 => polygon(x, y, &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)], r),
        4 => polygon(x, y, &[(0.0, 1.25), (1.15, -0.85), (-1.15, -0.85)], r),
        5 => polygon(x, y, &[(-1.3, -0.5), (1.3, -0.5), (1.3, 0.5), (-1.3, 0.5)], r),
        _ => polygon(x, y, &[(-0.5, -1.3), (0.5, -1.3), (0.5, 1.3), (-0.5, 1.3)], r),
    };
    let end = if i.is_multiple_of(SERIES) { "circle" } else { "polygon" };
    format!("{shape}<title>{}</title></{end}>\n", escape(title))
}

fn polygon(x: f64, y: f64, corners: &[(f64, f64)], r: f64) -> String {
    let points: Vec<String> =
        corners.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx * r, y + dy * r)).collect();
    format!("<polygon class=\"mark\" points=\"{}\">", points.join(" "))
}

/// The dash of series number `i`.
fn dash(i: usize) -> &'static str {
    ["", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 2"][i % SERIES]
}

/// A line between two points.
fn line(class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) -> String {
    format!("<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>\n")
}

/// Text at a point; `class` says how it is set.
fn text(class: &str, [x, y]: [f64; 2], text: &str) -> String {
    format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>\n", escape(text))
}

/// A chart with its heading and what is said below it (may be empty).
fn figure(title: &str, caption: &str, [width, height]: [f64; 2], wide: bool, body: &str) -> String {
    let (title, caption) = (escape(title), escape(caption));
    let (label, wide) = (title.clone(), if wide { " wide" } else { "" });
    // Text is read at its size where there is room.
    let size = 1.05 * width / 16.0;
    let caption = if caption.is_empty() { caption } else { format!("<figcaption>{caption}</figcaption>\n") };
    format!(
        "<figure>\n<h3>{title}</h3>\n<div class=\"chart\"><svg class=\"plot{wide}\" style=\"max-width:{size:.1}rem\" viewBox=\"0 0 {width} \
         {height}\" role=\"img\" aria-label=\"{label}\">\n{body}</svg></div>\n{caption}</figure>\n"
    )
}

/// The plotting area of a chart with two axes, in the picture's units.
struct Area {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Area {
    /// Horizontal grid lines, their numbers at the left, and the name of the axis above them.
    fn y_axis(&self, scale: &Scale, name: &str) -> String {
        let mut svg = text("tick", [0.0, self.top - 12.0], name);
        for tick in scale.ticks() {
            let y = scale.at(tick.value);
            svg += &line("grid", [self.left, y], [self.right, y]);
            svg += &text("tick end", [self.left - 7.0, y + 4.0], &tick.label);
        }
        svg
    }

    /// The horizontal axis with its numbers, and its name below them.
    fn x_axis(&self, scale: &Scale, name: &str) -> String {
        let mut svg = line("axis", [self.left, self.bottom], [self.right, self.bottom]);
        for tick in scale.ticks() {
            let x = scale.at(tick.value);
            svg += &line("axis", [x, self.bottom], [x, self.bottom + 4.0]);
            svg += &text("tick middle", [x, self.bottom + 18.0], &tick.label);
        }
        svg + &text("tick middle", [f64::midpoint(self.left, self.right), self.bottom + 38.0], name)
    }
}
