//! What predictions are worth: the table of predictions, the metrics of brain age with intervals over subjects,
//! and the paired comparison of two models on the same people. [`trial`] compares ways to pretrain by them.
pub mod age_metrics;
pub mod agreement;
pub mod arms;
pub mod bootstrap;
pub mod comparison;
pub mod gap;
pub mod paired;
pub mod predictions;
pub mod probe;
mod statistics;
pub mod trial;

use std::path::PathBuf;

use crate::error::FileError;

/// What can be wrong with predictions.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be opened, read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A table that is no table, e.g. rows of different lengths.
    #[error("{}: not a readable table; expected a header line and as many fields in every row", path.display())]
    Table {
        /// The table.
        path: PathBuf,
        /// The reader's complaint, with the line.
        #[source]
        source: csv::Error,
    },
    /// A required column is missing.
    #[error("{}: no column `{column}`; the columns are: {found}", path.display())]
    Column {
        /// The table.
        path: PathBuf,
        /// The column looked for.
        column: &'static str,
        /// The header found.
        found: String,
    },
    /// A field that cannot be used.
    #[error("{}: line {line}, column `{column}`: {problem}", path.display())]
    Field {
        /// The table.
        path: PathBuf,
        /// The line, from 1 (the header).
        line: u64,
        /// The column.
        column: &'static str,
        /// What is wrong and what is expected.
        problem: String,
    },
    /// Intervals over subjects need several.
    #[error("{found} subject(s) with a known age; intervals over subjects need at least 2")]
    TooFewSubjects {
        /// How many there are.
        found: usize,
    },
    /// A gap that cannot be corrected for age.
    #[error("seed {seed}, fold {fold}: the gap cannot be corrected: {problem}")]
    Calibration {
        /// The seed of the training.
        seed: u64,
        /// The fold it held out.
        fold: usize,
        /// Why not.
        problem: String,
    },
    /// Scans could not be trained on.
    #[error(transparent)]
    Train(#[from] crate::train::Error),
    /// A dataset, a cache or a split could not be used.
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    /// A study that cannot be, or whose files are damaged.
    #[error("{0}")]
    Setup(String),
    /// Two tables without two people in common.
    #[error("{found} subject(s) with a known age in both tables; a paired comparison needs at least 2")]
    TooFewInCommon {
        /// How many there are.
        found: usize,
    },
}
