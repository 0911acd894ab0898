//! Estimates with their intervals, a row each, around a line of no difference.
use super::{Scale, colour, figure, line, marker, text};
use crate::{report::html::fixed, study::bootstrap::Estimate};

/// One row.
#[derive(Clone, Debug)]
pub struct Interval {
    /// What it is of.
    pub label: String,
    /// The estimate; without one the row is a heading.
    pub estimate: Option<Estimate>,
    /// What stands at the right, a p-value for instance; may be empty.
    pub note: String,
}

/// A forest plot.
#[derive(Clone, Debug)]
pub struct Forest<'a> {
    /// Its heading.
    pub title: &'a str,
    /// What is said below it; may be empty.
    pub caption: &'a str,
    /// The name of the axis.
    pub axis: &'a str,
    /// Where there is no difference.
    pub zero: Option<f64>,
    /// What lies to the left and to the right of that line; may be empty.
    pub sides: [&'a str; 2],
    /// What the notes are, e.g. `p`; may be empty.
    pub notes: &'a str,
    /// Decimals of the numbers.
    pub digits: usize,
    /// The rows.
    pub rows: &'a [Interval],
}

const ROW: f64 = 26.0;
/// Room above the first row.
const TOP: f64 = 34.0;

impl Forest<'_> {
    /// The chart; nothing without estimates.
    pub fn render(&self) -> String {
        let estimates = || self.rows.iter().filter_map(|row| row.estimate);
        if estimates().next().is_none() {
            return String::new();
        }
        // Labels are set in 13 units; letters are about half as wide.
        let longest = self.rows.iter().map(|row| row.label.chars().count()).max().unwrap_or_default();
        let left = (longest as f64 * 6.6 + 16.0).clamp(90.0, 270.0);
        let noted = self.rows.iter().any(|row| !row.note.is_empty());
        let (width, top) = (740.0, TOP);
        // 22 characters of an estimate, up to 8 units each in the widest fonts, and a note.
        let right = width - if noted { 250.0 } else { 190.0 };
        let bottom = top + self.rows.len() as f64 * ROW + 4.0;
        let ends = estimates().flat_map(|e| [e.value, e.low, e.high]).chain(self.zero);
        let x = Scale::round(ends, [left, right]);

        let mut svg = String::new();
        for tick in x.ticks() {
            let at = x.at(tick.value);
            svg += &line("grid", [at, top - 6.0], [at, bottom]);
            svg += &text("tick middle", [at, bottom + 17.0], &tick.label);
        }
        svg += &line("axis", [left, bottom], [right, bottom]);
        svg += &text("tick middle", [f64::midpoint(left, right), bottom + 36.0], self.axis);
        svg += &text("tick", [right + 14.0, 14.0], "estimate (95 % interval)");
        svg += &text("tick end", [width, 14.0], self.notes);
        if let Some(zero) = self.zero {
            let at = x.at(zero);
            svg += &line("reference", [at, top - 6.0], [at, bottom]);
            let [less, more] = self.sides;
            if !less.is_empty() {
                svg += &text("tick end", [at - 8.0, 14.0], &format!("\u{2190} {less}"));
            }
            if !more.is_empty() {
                let more = format!("{more} \u{2192}");
                // Where the heading of the estimates is in the way, it ends at the line.
                let fits = at + 8.0 + more.chars().count() as f64 * 6.6 < right;
                let (class, at) =
                    if fits || !less.is_empty() { ("tick", at + 8.0) } else { ("tick end", at - 8.0) };
                svg += &text(class, [at, 14.0], &more);
            }
        }
        for (i, row) in self.rows.iter().enumerate() {
            let y = top + (i as f64 + 0.5) * ROW;
            let Some(Estimate { value, low, high }) = row.estimate else {
                svg += &text("soft", [0.0, y + 4.5], &row.label);
                continue;
            };
            svg += &text("", [0.0, y + 4.5], &row.label);
            let said = [value, low, high].map(|v| fixed(v, self.digits));
            let said = format!("{} ({} to {})", said[0], said[1], said[2]);
            svg += &format!("<g class=\"{}\">\n", colour(0));
            svg += &line("whisker", [x.at(low), y], [x.at(high), y]);
            for end in [low, high] {
                svg += &line("whisker", [x.at(end), y - 4.0], [x.at(end), y + 4.0]);
            }
            svg += &marker(2, x.at(value), y, &format!("{}: {said}", row.label));
            svg += "</g>\n";
            svg += &text("", [right + 14.0, y + 4.5], &said);
            svg += &text("soft end", [width, y + 4.5], &row.note);
        }
        figure(self.title, self.caption, [width, bottom + 44.0], true, &svg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_lies_around_its_estimate_and_the_line_at_zero() {
        let estimate = Estimate { value: -1.0, low: -2.0, high: 0.5 };
        let rows = [
            Interval { label: "fine-tuned".into(), estimate: None, note: String::new() },
            Interval { label: "a & b".into(), estimate: Some(estimate), note: "0.03".into() },
        ];
        let forest = Forest {
            title: "T",
            caption: "C",
            axis: "years",
            zero: Some(0.0),
            sides: ["better", "worse"],
            notes: "p",
            digits: 1,
            rows: &rows,
        };
        let svg = forest.render();
        // From -2 to 0.5 by steps of 0.5: left 90, right 490.
        let at = |v: f64| format!("{:.1}", 90.0 + (v + 2.0) / 2.5 * (490.0 - 90.0));
        let y = TOP + 1.5 * ROW;
        assert!(
            svg.contains(&format!("x1=\"{}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\"", at(-2.0), at(0.5))),
            "{svg}"
        );
        assert!(svg.contains(&format!("class=\"reference\" x1=\"{}\"", at(0.0))));
        assert!(svg.contains("a &amp; b: \u{2212}1.0 (\u{2212}2.0 to 0.5)") && svg.contains(">0.03<"));
        assert_eq!(Forest { rows: &rows[..1], ..forest }.render(), "");
    }
}
