//! The parts of a page: text that is safe in HTML, sections, tables, and the page that holds them.
//!
//! A page is one file that needs nothing else and asks nobody: style and script stand in it, and a content security
//! policy forbids requests.
use super::viewer;
use std::fmt::Write;

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
/// Nothing is loaded from anywhere; blobs are made by the viewer of what the page holds.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' blob:; img-src data: \
                      blob:; font-src data:; connect-src data: blob:; base-uri 'none'; form-action 'none'";

/// `text` with the five characters that mean something in HTML written out.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

/// A number with `digits` decimals and a true minus; `n/a` where there is none.
pub fn fixed(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return "n/a".to_owned();
    }
    let text = format!("{value:.digits$}");
    // What rounds to nothing has no sign.
    let zero = text.trim_start_matches('-').chars().all(|c| matches!(c, '0' | '.'));
    if zero { text.trim_start_matches('-').to_owned() } else { text.replace('-', "\u{2212}") }
}

/// A page in the making.
#[derive(Debug)]
pub struct Page {
    kind: String,
    title: String,
    lead: String,
    sections: Vec<(String, String)>,
}

impl Page {
    /// A page of what it is about (`kind`), its title, and what it says in a sentence or two; plain text.
    pub fn new(kind: &str, title: &str, lead: &str) -> Page {
        let [kind, title, lead] = [kind, title, lead].map(escape);
        Page { kind, title, lead, sections: Vec::new() }
    }

    /// Adds a section with a plain heading and a body in HTML; one without a body is left out.
    pub fn section(&mut self, heading: &str, body: impl Into<String>) {
        let body = body.into();
        if !body.is_empty() {
            self.sections.push((escape(heading), body));
        }
    }

    /// The whole page.
    pub fn render(&self) -> String {
        let Page { kind, title, lead, sections } = self;
        let (mut nav, mut main) = (String::new(), String::new());
        for (i, (heading, body)) in sections.iter().enumerate() {
            let _ = writeln!(nav, "<li><a href=\"#s{i}\">{heading}</a></li>");
            let _ = writeln!(
                main,
                "<section id=\"s{i}\" aria-labelledby=\"h{i}\">\n<h2 id=\"h{i}\">{heading}</h2>\n{body}\n</section>"
            );
        }
        let volumes = main.contains(viewer::FIGURE);
        let (viewer, licences) =
            if volumes { (viewer::script(), viewer::licences()) } else { Default::default() };
        let version = env!("CARGO_PKG_VERSION");
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=\"Content-Security-Policy\" \
             content=\"{POLICY}\">\n<meta name=\"generator\" content=\"gyrus {version}\">\n<title>{title}</title>\n\
             <link rel=\"icon\" href=\"data:,\">\n<style>\n{STYLE}</style>\n</head>\n<body>\n<a class=\"skip\" \
             href=\"#main\">To the contents</a>\n<header>\n<p class=\"kind\">{kind}</p>\n<h1>{title}</h1>\n<p \
             class=\"lead\">{lead}</p>\n<nav aria-label=\"Sections\">\n<ul>\n{nav}</ul>\n</nav>\n</header>\n<main \
             id=\"main\">\n{main}</main>\n<footer>\n<p>Written by gyrus {version}. Brain age is a research measure, not \
             a diagnosis.</p>\n{licences}</footer>\n<script>\n{SCRIPT}</script>\n{viewer}</body>\n</html>\n"
        )
    }
}

/// A paragraph of plain text.
pub fn paragraph(text: &str) -> String {
    format!("<p>{}</p>\n", escape(text))
}

/// A small grey paragraph of plain text.
pub fn note(text: &str) -> String {
    format!("<p class=\"note\">{}</p>\n", escape(text))
}

/// Charts beside each other where there is room. `small` ones stand more in a row.
pub fn figures(charts: &[String], small: bool) -> String {
    let class = if small { "small figures" } else { "figures" };
    if charts.is_empty() {
        String::new()
    } else {
        format!("<div class=\"{class}\">\n{}</div>\n", charts.concat())
    }
}

/// What stands behind a click.
pub fn details(summary: &str, body: &str) -> String {
    format!("<details>\n<summary>{}</summary>\n{body}</details>\n", escape(summary))
}

/// The few numbers that matter: each a value, what it is, and what qualifies it (may be empty).
pub fn numbers(rows: &[(String, &str, String)]) -> String {
    let item = |(value, name, more): &(String, &str, String)| {
        let (value, name, more) = (escape(value), escape(name), escape(more));
        let more = if more.is_empty() { more } else { format!("<small>{more}</small>") };
        format!("<div><dt>{name}{more}</dt><dd>{value}</dd></div>\n")
    };
    format!("<dl class=\"numbers\">\n{}</dl>\n", rows.iter().map(item).collect::<String>())
}

/// How a column sorts and stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// By value, to the right.
    Number,
    /// Words in an order of their own.
    Rank,
    /// By letters.
    Text,
    /// By letters; long, and may break anywhere.
    Path,
    /// Sentences; not sorted.
    Words,
    /// A picture; not sorted.
    Picture,
}

/// A cell.
#[derive(Clone, Debug)]
pub struct Cell {
    html: String,
    /// What it sorts by, where that is not what it shows.
    key: Option<f64>,
}

impl Cell {
    /// Plain text.
    pub fn text(text: &str) -> Cell {
        Cell { html: escape(text), key: None }
    }
    /// A number with `digits` decimals; one that is not finite is `n/a`.
    pub fn number(value: f64, digits: usize) -> Cell {
        Cell { html: fixed(value, digits), key: Some(value) }
    }
    /// A whole number.
    pub fn count(count: usize) -> Cell {
        Cell { html: count.to_string(), key: Some(count as f64) }
    }
    /// Plain text that sorts by a number.
    pub fn keyed(text: &str, key: f64) -> Cell {
        Cell { html: escape(text), key: Some(key) }
    }
    /// HTML that is safe already.
    pub fn html(html: String, key: Option<f64>) -> Cell {
        Cell { html, key }
    }
}

/// A table. The first column names its rows.
#[derive(Debug)]
pub struct Table {
    caption: String,
    columns: Vec<(String, Column)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table with a caption and columns in plain text.
    pub fn new(caption: &str, columns: &[(&str, Column)]) -> Table {
        let columns = columns.iter().map(|(name, column)| (escape(name), *column)).collect();
        Table { caption: escape(caption), columns, rows: Vec::new() }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// With more or fewer cells than there are columns.
    #[track_caller]
    pub fn row(&mut self, cells: Vec<Cell>) {
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column of `{}`", self.caption);
        self.rows.push(cells);
    }

    /// In HTML; sortable where there is something to sort.
    pub fn render(&self) -> String {
        let sortable = self.rows.len() > 2;
        let mut html = String::new();
        for (name, column) in &self.columns {
            let kind = match column {
                Column::Number => " class=\"n\" data-sort=\"number\"",
                Column::Rank => " data-sort=\"number\"",
                Column::Text | Column::Path => " data-sort=\"text\"",
                Column::Words | Column::Picture => "",
            };
            let kind = if sortable { kind } else { kind.split(" data").next().unwrap_or_default() };
            let _ = write!(html, "<th scope=\"col\"{kind}>{name}</th>");
        }
        let class = if sortable { " class=\"sortable\"" } else { "" };
        let caption = &self.caption;
        // A region that can be scrolled has to be reached by keyboard.
        let mut html = format!(
            "<div class=\"table\" role=\"region\" tabindex=\"0\" aria-label=\"{caption}\">\n<table{class}>\n\
             <caption><span>{caption}</span></caption>\n<thead><tr>{html}</tr></thead>\n<tbody>\n"
        );
        for row in &self.rows {
            html.push_str("<tr>");
            for (i, (cell, (_, column))) in row.iter().zip(&self.columns).enumerate() {
                let class = match column {
                    Column::Number => " class=\"n\"",
                    Column::Path => " class=\"path\"",
                    Column::Words => " class=\"words\"",
                    Column::Rank | Column::Text | Column::Picture => "",
                };
                let tag = if i == 0 && *column != Column::Picture { "th" } else { "td" };
                let scope = if tag == "th" { " scope=\"row\"" } else { "" };
                let key = cell.key.map_or(String::new(), |key| format!(" data-v=\"{key}\""));
                let _ = write!(html, "<{tag}{scope}{class}{key}>{}</{tag}>", cell.html);
            }
            html.push_str("</tr>\n");
        }
        html + "</tbody>\n</table>\n</div>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_files_cannot_become_markup() {
        let evil = "<script>alert('1')</script> & \"x\"";
        let safe = "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &quot;x&quot;";
        assert_eq!(escape(evil), safe);
        let mut table = Table::new(evil, &[(evil, Column::Text), ("n", Column::Number)]);
        table.row(vec![Cell::text(evil), Cell::number(f64::NAN, 2)]);
        let mut page = Page::new(evil, evil, evil);
        page.section(evil, table.render() + &paragraph(evil) + &numbers(&[(evil.into(), evil, evil.into())]));
        let html = page.render();
        assert!(!html.contains("<script>alert"), "{html}");
        assert_eq!(html.matches("&lt;script&gt;").count(), 14);
        assert!(html.contains("<td class=\"n\" data-v=\"NaN\">n/a</td>"), "{html}");
    }

    #[test]
    fn a_page_without_volumes_does_not_carry_the_viewer() {
        let mut page = Page::new("Kind", "Title", "Lead.");
        page.section("Empty", "");
        page.section("Full", paragraph("text"));
        let html = page.render();
        assert!(html.len() < 40_000 && !html.contains("id=\"niivue\""), "{}", html.len());
        assert!(!html.contains("Empty") && html.contains("<a href=\"#s0\">Full</a>"));
    }

    #[test]
    fn numbers_have_a_true_minus_and_no_negative_zero() {
        assert_eq!(fixed(-1.26, 1), "\u{2212}1.3");
        assert_eq!(fixed(-0.04, 1), "0.0");
        assert_eq!(fixed(f64::INFINITY, 1), "n/a");
    }

    #[test]
    fn short_tables_are_not_sortable() {
        let mut table = Table::new("c", &[("a", Column::Text), ("b", Column::Number)]);
        (0..2).for_each(|i| table.row(vec![Cell::text("x"), Cell::count(i)]));
        assert!(!table.render().contains("sort"));
        table.row(vec![Cell::text("x"), Cell::count(3)]);
        assert!(table.render().contains("data-sort=\"number\""));
    }
}
