//! What every page of a run says: its curves, and its settings.
use super::{
    chart::Curve,
    html::{Cell, Column, Table},
};
use crate::error::{FileError, OnFile};
use crate::train::log;
use serde_json::Value;
use std::{fs, io, path::Path};

/// The values that a run logged, by name.
pub(super) struct Log(Vec<Value>);

impl Log {
    /// Reads `metrics.jsonl` of a run; one that was not kept is empty.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn read(folder: &Path) -> Result<Log, FileError> {
        Ok(Log(log::lines(folder)?))
    }

    /// The updates that were logged.
    pub(super) fn updates(&self) -> usize {
        self.0.iter().filter(|line| line.get("loss").is_some()).count()
    }

    /// Where the value `name` went, by epochs: an update is its share of one of `epochs` epochs.
    pub(super) fn course(&self, name: &str, epochs: usize) -> Vec<[f64; 2]> {
        let updates = self.updates().max(1) as f64;
        let point = |line: &Value| {
            let value = line.get(name)?;
            let step = line.get("step")?.as_f64()? + 1.0;
            Some([step / updates * epochs as f64, value.as_f64().unwrap_or(f64::NAN)])
        };
        self.0.iter().filter_map(point).collect()
    }
}

/// A curve of `points`, smoothed by the mean of windows of a fiftieth of it, with the points themselves behind it.
pub(super) fn smooth(name: &str, points: Vec<[f64; 2]>) -> Curve {
    let half = points.len() / 100;
    if half == 0 {
        return Curve { name: name.to_owned(), points, ..Curve::default() };
    }
    let mean = |i: usize| {
        // As wide to the left as to the right, so that a slope is not shifted.
        let reach = half.min(i).min(points.len() - 1 - i);
        let window = &points[i - reach..=i + reach];
        window.iter().map(|p| p[1]).sum::<f64>() / window.len() as f64
    };
    let smoothed = (0..points.len()).map(|i| [points[i][0], mean(i)]).collect();
    Curve { name: name.to_owned(), points: smoothed, behind: points, ..Curve::default() }
}

/// The settings in `config.toml` of a run, a row each; nothing without the file.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn settings(folder: &Path) -> Result<String, FileError> {
    let path = folder.join("config.toml");
    let text = match fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        text => text.on_file("read", &path)?,
    };
    let parsed = text.parse::<toml::Table>().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e));
    let mut table = Table::new("config.toml", &[("Setting", Column::Text), ("Value", Column::Path)]);
    flatten("", &parsed.on_file("read", &path)?, &mut table);
    Ok(table.render())
}

fn flatten(prefix: &str, values: &toml::Table, table: &mut Table) {
    for (key, value) in values {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(&key, inner, table),
            value => table.row(vec![Cell::text(&key), Cell::text(&value.to_string())]),
        }
    }
}

/// Names and values, a row each; rows without a value are left out.
pub(super) fn facts(caption: &str, rows: &[(&str, String)]) -> String {
    let mut table = Table::new(caption, &[("What", Column::Words), ("Value", Column::Path)]);
    for (name, value) in rows.iter().filter(|(_, value)| !value.is_empty()) {
        table.row(vec![Cell::text(name), Cell::text(value)]);
    }
    table.render()
}

/// `1,234,567`.
pub(super) fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_counted_in_epochs_and_torn_lines_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let lines = "{\"step\":0,\"loss\":4.0}\n{\"step\":1,\"loss\":null}\n{\"step\":1,\"epoch\":1.0,\
                     \"watched_loss\":3.0}\n{\"step\":2,\"loss\":1.0}\n{\"step\":3,\"loss\":1.0}\n{\"ste";
        fs::write(folder.path().join("metrics.jsonl"), lines).unwrap();
        let log = Log::read(folder.path()).unwrap();
        let loss = log.course("loss", 2);
        assert_eq!((loss[0], loss[3]), ([0.5, 4.0], [2.0, 1.0]));
        assert!(loss[1][1].is_nan());
        assert_eq!(log.course("watched_loss", 2), [[1.0, 3.0]]);
        assert_eq!(Log::read(&folder.path().join("none")).unwrap().updates(), 0);
    }

    #[test]
    fn smoothing_leaves_a_straight_line_as_it_is() {
        let line: Vec<[f64; 2]> = (0..1000).map(|i| [f64::from(i), f64::from(2 * i)]).collect();
        let curve = smooth("x", line.clone());
        assert!(curve.points.iter().zip(&line).all(|(a, b)| (a[1] - b[1]).abs() < 1e-9));
        assert_eq!(curve.behind, line);
        assert!(smooth("x", line[..50].to_vec()).behind.is_empty());
    }

    #[test]
    fn nested_settings_have_dotted_names() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.toml"), "a = 1\n[train]\nlr = 0.5\nbetas = [0.9, 0.95]\n")
            .unwrap();
        let html = settings(folder.path()).unwrap();
        assert!(html.contains("train.betas") && html.contains("[0.9, 0.95]"), "{html}");
        assert_eq!(settings(&folder.path().join("none")).unwrap(), "");
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!([7, 1234, 1_234_567].map(thousands), ["7", "1,234", "1,234,567"]);
    }
}
