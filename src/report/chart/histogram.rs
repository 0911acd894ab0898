//! Counts: how often values lie between two limits, and how many there are of each kind.
use super::{Area, Scale, colour, escape, figure, line, text};
use std::fmt::Write;

/// How many values lie where.
#[derive(Clone, Debug)]
pub struct Histogram<'a> {
    /// Its heading.
    pub title: &'a str,
    /// What is said below it; may be empty.
    pub caption: &'a str,
    /// The names of the axes.
    pub axes: [&'a str; 2],
    /// The values.
    pub values: &'a [f64],
    /// The least and the greatest that is shown; by default those of the values.
    pub range: Option<[f64; 2]>,
    /// How many bars there are.
    pub bins: usize,
}

impl Histogram<'_> {
    /// The chart; nothing without values.
    pub fn render(&self) -> String {
        let known: Vec<f64> = self.values.iter().copied().filter(|v| v.is_finite()).collect();
        if known.is_empty() {
            return String::new();
        }
        let area = Area { left: 44.0, right: 504.0, top: 30.0, bottom: 230.0 };
        let shown = self.range.map_or_else(|| known.clone(), |range| range.to_vec());
        let x = Scale::exact(shown, [area.left, area.right]);
        let width = (area.right - area.left) / self.bins as f64;
        let mut counts = vec![0_usize; self.bins];
        for v in known.into_iter().filter(|v| x.holds(*v)) {
            let bin = ((x.at(v) - area.left) / width).max(0.0) as usize;
            counts[bin.min(self.bins - 1)] += 1;
        }
        let most = counts.iter().max().copied().unwrap_or_default();
        let y = Scale::round([0.0, most as f64], [area.bottom, area.top]);
        let mut svg = area.y_axis(&y, self.axes[1]) + "<g class=\"c0\">\n";
        for (i, count) in counts.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            let (left, top) = (area.left + i as f64 * width + 0.5, y.at(count as f64));
            let (width, height) = (width - 1.0, area.bottom - top);
            let _ = writeln!(
                svg,
                "<rect class=\"bar\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" \
                 height=\"{height:.1}\"><title>{count}</title></rect>"
            );
        }
        svg += "</g>\n";
        svg += &area.x_axis(&x, self.axes[0]);
        figure(self.title, self.caption, [520.0, 274.0], false, &svg)
    }
}

/// How many there are of each kind, a bar each.
#[derive(Clone, Debug)]
pub struct Bars<'a> {
    /// Its heading.
    pub title: &'a str,
    /// What is said below it; may be empty.
    pub caption: &'a str,
    /// What is counted, and how many; the number of the colour.
    pub bars: &'a [(String, usize, usize)],
}

const ROW: f64 = 30.0;

impl Bars<'_> {
    /// The chart; nothing without bars.
    pub fn render(&self) -> String {
        let total: usize = self.bars.iter().map(|(_, count, _)| count).sum();
        if total == 0 {
            return String::new();
        }
        let most = self.bars.iter().map(|(_, count, _)| *count).max().unwrap_or(1);
        let x = Scale::exact([0.0, most as f64], [104.0, 420.0]);
        let mut svg = String::new();
        for (i, (name, count, series)) in self.bars.iter().enumerate() {
            let y = i as f64 * ROW + 6.0;
            let width = x.at(*count as f64) - 104.0;
            svg += &text("", [0.0, y + 15.0], name);
            let _ = writeln!(
                svg,
                "<g class=\"{}\"><rect class=\"bar\" x=\"104\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"20\">\
                 <title>{}: {count}</title></rect></g>",
                colour(*series),
                escape(name)
            );
            let percent = 100.0 * *count as f64 / total as f64;
            svg += &text("soft", [104.0 + width + 8.0, y + 15.0], &format!("{count} ({percent:.0} %)"));
        }
        let height = self.bars.len() as f64 * ROW + 8.0;
        svg += &line("axis", [104.0, 2.0], [104.0, height - 4.0]);
        figure(self.title, self.caption, [520.0, height], false, &svg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_in_their_bins_and_the_greatest_in_the_last() {
        let histogram = Histogram {
            title: "T",
            caption: "",
            axes: ["score", "scans"],
            values: &[0.0, 5.0, 95.0, 100.0, f64::NAN],
            range: Some([0.0, 100.0]),
            bins: 10,
        };
        let svg = histogram.render();
        assert_eq!(svg.matches("<title>2</title>").count(), 2, "{svg}");
        assert_eq!(Histogram { values: &[f64::NAN], ..histogram }.render(), "");
    }

    #[test]
    fn the_longest_bar_takes_the_width_and_shares_are_written_out() {
        let bars = [("Good".to_owned(), 3, 0), ("<b>".to_owned(), 1, 1)];
        let svg = Bars { title: "T", caption: "", bars: &bars }.render();
        assert!(svg.contains("width=\"316.0\"") && svg.contains("3 (75 %)"), "{svg}");
        assert!(svg.contains("&lt;b&gt;") && !svg.contains("<b>"));
    }
}
