//! The table of predictions: one scan a row, written by fine-tuning and prediction, read by `gyrus evaluate`.
//!
//! Comma-separated, or tab-separated when the file is called `.tsv`. Columns: `scan`, `subject`, `session`, `age`,
//! `predicted_age`, `gap` (predicted - age), `fold`, `warnings`; years; `n/a` or nothing where unknown, as in BIDS.
use std::{collections::HashMap, path::Path};

use super::{Error, age_metrics::Row};
use crate::{error::OnFile, file::write_whole};

const COLUMNS: [&str; 8] = ["scan", "subject", "session", "age", "predicted_age", "gap", "fold", "warnings"];

/// Ages beyond this are taken for another unit (months), as no one has lived that long.
const OLDEST: f64 = 125.0;

/// What was predicted for one scan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prediction {
    /// The scan: its file, relative to the data set. No two rows share one.
    pub scan: String,
    /// Who.
    pub subject: String,
    /// Which visit, when the data names visits.
    pub session: Option<String>,
    /// True age at the scan in years, when known.
    pub age: Option<f64>,
    /// Predicted age, years.
    pub predicted_age: f64,
    /// The fold of cross-validation that held the scan out.
    pub fold: Option<usize>,
    /// What to know before trusting the number; empty when nothing.
    pub warnings: String,
}

/// Reads a table; columns may stand in any order, and those that are not listed above are ignored. `scan`, `subject`
/// and `predicted_age` are required.
///
/// # Errors
/// [`Error`] naming the file, and where there is one the line and the column.
pub fn read(path: &Path) -> Result<Vec<Prediction>, Error> {
    let text = std::fs::read(path).on_file("read", path)?;
    let mut table = csv::ReaderBuilder::new()
        .delimiter(delimiter(path))
        .trim(csv::Trim::All)
        .from_reader(text.as_slice());
    let broken = |source| Error::Table { path: path.to_owned(), source };
    let header = table.headers().map_err(broken)?.clone();
    let column = |name: &'static str| header.iter().position(|h| h == name);
    let required = |name: &'static str| {
        let found = header.iter().collect::<Vec<_>>().join(", ");
        column(name).ok_or(Error::Column { path: path.to_owned(), column: name, found })
    };
    let (scan, subject, predicted_age) =
        (required("scan")?, required("subject")?, required("predicted_age")?);
    let [session, age, fold, warnings] = ["session", "age", "fold", "warnings"].map(column);

    let mut line_of: HashMap<String, u64> = HashMap::new();
    let mut predictions = Vec::new();
    for record in table.records() {
        let record = record.map_err(broken)?;
        let line = record.position().map_or(0, csv::Position::line);
        let wrong = |column, problem| Error::Field { path: path.to_owned(), line, column, problem };
        let field = |at: usize| Some(&record[at]).filter(|s| !matches!(*s, "" | "n/a"));
        let name = |column, at| field(at).map(str::to_owned).ok_or_else(|| wrong(column, "is empty".into()));
        let years = |column, text: &str| match text.parse::<f64>() {
            Ok(years) if years.is_finite() => Ok(years),
            _ => Err(wrong(column, format!("`{text}` is not a number of years"))),
        };
        let prediction = Prediction {
            scan: name("scan", scan)?,
            subject: name("subject", subject)?,
            session: session.and_then(field).map(str::to_owned),
            age: age.and_then(field).map(|text| years("age", text)).transpose()?,
            predicted_age: years("predicted_age", field(predicted_age).unwrap_or_default())?,
            fold: (fold.and_then(field))
                .map(|text| {
                    text.parse().map_err(|_| wrong("fold", format!("`{text}` is not a fold's number")))
                })
                .transpose()?,
            warnings: warnings.and_then(field).unwrap_or_default().to_owned(),
        };
        if let Some(age) = prediction.age.filter(|age| !(0.0..=OLDEST).contains(age)) {
            return Err(wrong(
                "age",
                format!("{age} is no age in years; divide months by 12 or days by 365.25"),
            ));
        }
        if let Some(first) = line_of.insert(prediction.scan.clone(), line) {
            let problem =
                format!("`{}` is already on line {first}; keep one prediction a scan", prediction.scan);
            return Err(wrong("scan", problem));
        }
        predictions.push(prediction);
    }
    Ok(predictions)
}

/// Writes a table, whole or not at all; predictions with four decimals.
///
/// # Errors
/// [`Error::File`] when the file cannot be written.
pub fn write(path: &Path, predictions: &[Prediction]) -> Result<(), Error> {
    let known = |value: Option<String>| value.unwrap_or_else(|| "n/a".into());
    write_whole(path, |file| {
        let mut table = csv::WriterBuilder::new().delimiter(delimiter(path)).from_writer(file);
        table.write_record(COLUMNS)?;
        for p in predictions {
            table.write_record([
                p.scan.clone(),
                p.subject.clone(),
                known(p.session.clone()),
                known(p.age.map(|age| age.to_string())),
                format!("{:.4}", p.predicted_age),
                known(p.age.map(|age| format!("{:.4}", p.predicted_age - age))),
                known(p.fold.map(|fold| fold.to_string())),
                p.warnings.clone(),
            ])?;
        }
        table.flush()
    })?;
    Ok(())
}

/// The predictions for people of known age, as the metrics take them.
pub fn rows(predictions: &[Prediction]) -> Vec<Row> {
    let row =
        |p: &Prediction| Some(Row { subject: p.subject.clone(), age: p.age?, prediction: p.predicted_age });
    predictions.iter().filter_map(row).collect()
}

fn delimiter(path: &Path) -> u8 {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv")) { b'\t' } else { b',' }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Prediction>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.csv");
        std::fs::write(&path, text).unwrap();
        read(&path).map_err(|e| crate::error::chain(&e).split_once("p.csv").unwrap().1.to_owned())
    }

    #[test]
    fn a_written_table_reads_back_equal_as_csv_and_tsv() {
        let predictions = [
            Prediction {
                scan: "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz".into(),
                subject: "sub-1".into(),
                session: Some("ses-a".into()),
                age: Some(61.25),
                predicted_age: 58.5,
                fold: Some(3),
                warnings: "low quality, \"cut\" at the top".into(),
            },
            Prediction {
                scan: "b.nii".into(),
                subject: "b".into(),
                predicted_age: 40.0,
                ..Default::default()
            },
        ];
        let folder = tempfile::tempdir().unwrap();
        for name in ["predictions.csv", "predictions.tsv"] {
            let path = folder.path().join(name);
            write(&path, &predictions).unwrap();
            assert_eq!(read(&path).unwrap(), predictions);
        }
        let text = std::fs::read_to_string(folder.path().join("predictions.tsv")).unwrap();
        assert!(text.ends_with("b.nii\tb\tn/a\tn/a\t40.0000\tn/a\tn/a\t\n"), "{text}");
        assert_eq!(rows(&predictions).len(), 1);
    }

    #[test]
    fn columns_may_stand_in_any_order_beside_others() {
        let p = read_text("\u{feff}site,predicted_age, age ,subject,scan\nx,50,n/a,s,a\n").unwrap();
        assert_eq!((p[0].predicted_age, p[0].age, p[0].scan.as_str()), (50.0, None, "a"));
    }

    #[test]
    fn errors_name_the_line_and_the_column() {
        for (text, message) in [
            ("scan,age\n", ": no column `subject`; the columns are: scan, age"),
            (
                "scan,subject,predicted_age\na,s,50\nb,s,old\n",
                ": line 3, column `predicted_age`: `old` is not a number of years",
            ),
            (
                "scan,subject,predicted_age\na,s,NaN\n",
                ": line 2, column `predicted_age`: `NaN` is not a number of years",
            ),
            (
                "scan,subject,predicted_age,age\na,s,50,612\n",
                ": line 2, column `age`: 612 is no age in years; divide months by 12 or days by 365.25",
            ),
            ("scan,subject,predicted_age\na,,50\n", ": line 2, column `subject`: is empty"),
            (
                "scan,subject,predicted_age,fold\na,s,50,x\n",
                ": line 2, column `fold`: `x` is not a fold's number",
            ),
            (
                "scan,subject,predicted_age\na,s,50\na,s,51\n",
                ": line 3, column `scan`: `a` is already on line 2; keep one prediction a scan",
            ),
        ] {
            assert_eq!(read_text(text).unwrap_err(), message);
        }
        let ragged = read_text("scan,subject,predicted_age\na,s\n").unwrap_err();
        assert!(ragged.contains("not a readable table") && ragged.contains("line: 2"), "{ragged}");
    }
}
