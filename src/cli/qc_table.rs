//! The table that `gyrus qc` writes, and the sidecar that explains it.
use crate::{
    data::Scan,
    quality::{Grade, MEASURES, Measured},
    report::contact::Thumbnail,
};
use serde_json::{Map, Value, json};
use std::error::Error;

/// One scan.
pub(super) struct Row {
    pub(super) scan: Scan,
    /// Or why it could not be.
    pub(super) measured: Result<Measured, String>,
    pub(super) score: f64,
    pub(super) grade: Grade,
    pub(super) reasons: Vec<String>,
    pub(super) rating: Option<f64>,
    pub(super) predicted: Option<f64>,
    pub(super) thumbnail: Option<Thumbnail>,
}

/// Columns before the measures: (name, long name, description).
const BEFORE: [(&str, &str, &str); 6] = [
    ("participant_id", "Subject", "whose scan it is"),
    ("session_id", "Session", "the visit, where there are several"),
    ("modality", "Modality", "as BIDS writes it"),
    ("path", "Path", "the image file"),
    (
        "state",
        "State",
        "what is left of the head: whole head, defaced or skull-stripped; measures that are undefined for it are n/a",
    ),
    (
        "region",
        "Region",
        "where tissue was measured: brain mask, all but the background, or core of the head",
    ),
];
const AFTER: [(&str, &str, &str); 3] = [
    (
        "score",
        "Score",
        "100 without a fault, halved by every measure at its limit \"bad\" (gyrus qc --print-thresholds)",
    ),
    ("grade", "Grade", "Excellent, Acceptable, Poor or Exclude"),
    ("reasons", "Reasons", "the faults that cost most of the score, or why the scan could not be measured"),
];
const RATED: [(&str, &str, &str); 2] = [
    ("rating", "Rating", "as given"),
    ("predicted_rating", "Predicted rating", "by a fit to the measures and ratings of other subjects"),
];

/// The table, tab-separated.
pub(super) fn tsv(rows: &[Row], rated: bool) -> Result<String, Box<dyn Error>> {
    let last = if rated { &RATED[..] } else { &[] };
    let names = BEFORE.iter().map(|c| c.0).chain(MEASURES.iter().map(|m| m.name));
    let names = names.chain(AFTER.iter().chain(last).map(|c| c.0));
    let mut table = csv::WriterBuilder::new()
        .delimiter(b'\t')
        .quote_style(csv::QuoteStyle::Never)
        .from_writer(Vec::new());
    table.write_record(names)?;
    let number = |v: Option<f64>| v.map_or("n/a".to_owned(), |v| format!("{}", (v * 1e6).round() / 1e6));
    for row in rows {
        let measured = row.measured.as_ref().ok();
        let mut cells = vec![
            row.scan.subject.clone(),
            row.scan.session.clone().unwrap_or("n/a".into()),
            row.scan.modality.clone(),
            row.scan.path.display().to_string(),
            measured.map_or("n/a".into(), |m| m.state.to_string()),
            measured.map_or("n/a".into(), |m| m.region.to_string()),
        ];
        cells.extend((0..MEASURES.len()).map(|i| number(measured.and_then(|m| m.measures.at(i)))));
        let reasons = if row.reasons.is_empty() { "n/a".to_owned() } else { row.reasons.join("; ") };
        cells.extend([number(Some(row.score)), row.grade.to_string(), reasons]);
        if rated {
            cells.extend([number(row.rating), number(row.predicted)]);
        }
        // Nothing is quoted in BIDS, so nothing may need it.
        table.write_record(cells.iter().map(|c| c.replace(['\t', '\n', '\r'], " ")))?;
    }
    Ok(String::from_utf8(table.into_inner()?)?)
}

/// What each column is, as BIDS has it.
pub(super) fn sidecar(column: Option<&str>) -> Value {
    let mut all = Map::new();
    let words = |(name, long, description): &(&str, &str, &str)| {
        ((*name).to_owned(), json!({ "LongName": long, "Description": description }))
    };
    all.extend(BEFORE.iter().map(words));
    for m in &MEASURES {
        let value = json!({ "LongName": m.long_name, "Description": m.description, "Units": m.units });
        all.insert(m.name.to_owned(), value);
    }
    all.extend(AFTER.iter().map(words));
    if let Some(column) = column {
        all.extend(RATED.iter().map(words));
        all["rating"]["Description"] = format!("as given in the column {column}").into();
    }
    Value::Object(all)
}
