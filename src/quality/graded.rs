//! What `gyrus qc` said of scans, read back from its table.
use std::path::{Path, PathBuf};

/// What is known of one scan.
#[derive(Clone, Debug, PartialEq)]
pub struct Graded {
    /// Whose scan it is.
    pub subject: String,
    /// The image file.
    pub path: PathBuf,
    /// 100 without a fault.
    pub score: f64,
    /// Excellent, Acceptable, Poor or Exclude.
    pub grade: String,
}

/// Reads the table `qc.tsv` at `path`; `Err` names the file and what is wrong with it.
pub fn graded(path: &Path) -> Result<Vec<Graded>, String> {
    let wrong = |problem: String| format!("{}: {problem}", path.display());
    let mut table = csv::ReaderBuilder::new()
        .delimiter(b'\t')
        .quoting(false)
        .from_path(path)
        .map_err(|e| wrong(e.to_string()))?;
    let header = table.headers().map_err(|e| wrong(e.to_string()))?.clone();
    let column = |name: &str| {
        let missing = || wrong(format!("no column {name}: expected the qc.tsv of gyrus qc"));
        header.iter().position(|h| h == name).ok_or_else(missing)
    };
    let [subject, file, score, grade] = ["participant_id", "path", "score", "grade"].map(column);
    let (subject, file, score, grade) = (subject?, file?, score?, grade?);
    let read = |record: Result<csv::StringRecord, csv::Error>| {
        let record = record.map_err(|e| wrong(e.to_string()))?;
        let number =
            record[score].parse().map_err(|_| wrong(format!("score {} is no number", &record[score])))?;
        Ok(Graded {
            subject: record[subject].to_owned(),
            path: PathBuf::from(&record[file]),
            score: number,
            grade: record[grade].to_owned(),
        })
    };
    table.records().map(read).collect()
}
