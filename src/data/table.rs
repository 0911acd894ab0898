//! Tables with named columns, as BIDS and people write them: tabs or commas, upper or lower case, `n/a` for
//! nothing, perhaps a byte-order mark in front.
use super::Error;
use crate::error::OnFile;
use std::{fs, path::Path, path::PathBuf, str::FromStr};

/// What becomes of ages that no person has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ages {
    /// They are errors, since they are most often months or days.
    Refused,
    /// They are kept as they stand, and what is no number is unknown: to be looked at, not to be trained on.
    Kept,
}

/// A table in memory; columns go by name, without regard to case.
#[derive(Debug)]
pub(super) struct Table {
    path: PathBuf,
    ages: Ages,
    header: Vec<String>,
    rows: Vec<(u64, csv::StringRecord)>,
}

/// One line of a [`Table`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'a> {
    table: &'a Table,
    line: u64,
    cells: &'a csv::StringRecord,
}

impl Table {
    /// Reads `path`, comma-separated if its name ends in `.csv`, else tab-separated.
    pub(super) fn read(path: &Path, ages: Ages) -> Result<Table, Error> {
        let bytes = fs::read(path).on_file("read", path)?;
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let csv = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(if csv { b',' } else { b'\t' })
            .quoting(csv)
            .trim(csv::Trim::All)
            .from_reader(bytes);
        let fault = |source| Error::Table { path: path.to_owned(), source };
        let header = reader.headers().map_err(fault)?.iter().map(str::to_lowercase).collect();
        let mut rows = Vec::new();
        for record in reader.into_records() {
            let record = record.map_err(fault)?;
            rows.push((record.position().map_or(0, csv::Position::line), record));
        }
        Ok(Table { path: path.to_owned(), ages, header, rows })
    }

    /// Refuses a table that lacks one of `columns`.
    pub(super) fn require(&self, columns: &[&str]) -> Result<(), Error> {
        match columns.iter().find(|c| !self.header.iter().any(|h| h == *c)) {
            None => Ok(()),
            Some(column) => {
                let (path, present) = (self.path.clone(), self.header.clone());
                Err(Error::Column { path, column: (*column).to_owned(), present })
            }
        }
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().map(|(line, cells)| Row { table: self, line: *line, cells })
    }
}

impl<'a> Row<'a> {
    /// The cell of `column`, unless the column is absent or the cell says that nothing is known.
    pub(super) fn text(&self, column: &str) -> Option<&'a str> {
        let index = self.table.header.iter().position(|h| h == column)?;
        let cell = self.cells.get(index)?;
        let unknown = ["", "n/a", "na", "nan", "none", "null"].iter().any(|u| cell.eq_ignore_ascii_case(u));
        (!unknown).then_some(cell)
    }

    /// The cell of `column` as a number or other value; `expected` says what may stand there.
    pub(super) fn parse<T: FromStr>(&self, column: &str, expected: &'static str) -> Result<Option<T>, Error> {
        self.text(column).map(|t| t.parse().map_err(|_| self.refuse(column, expected))).transpose()
    }

    /// The age in years, 0 to 120, or as the table was told to take others.
    pub(super) fn age(&self) -> Result<Option<f32>, Error> {
        if self.table.ages == Ages::Kept {
            return Ok(self.text("age").and_then(|t| t.parse().ok()).filter(|a: &f32| a.is_finite()));
        }
        let expected = "an age in years, 0 to 120, or n/a";
        let age = self.parse("age", expected)?;
        match age {
            Some(years) if !(0.0..=120.0).contains(&years) => Err(self.refuse("age", expected)),
            age => Ok(age),
        }
    }

    /// A quality rating from the first of `columns` that is there.
    pub(super) fn quality(&self, columns: &[&str]) -> Result<Option<f32>, Error> {
        let column = columns.iter().find(|c| self.text(c).is_some());
        column.map_or(Ok(None), |c| self.parse(c, "a finite number, or n/a"))
    }

    /// The error for a cell of this row.
    pub(super) fn refuse(&self, column: &str, expected: &'static str) -> Error {
        Error::Value {
            path: self.table.path.clone(),
            line: self.line,
            column: column.to_owned(),
            value: self.text(column).unwrap_or("").to_owned(),
            expected,
        }
    }
}
