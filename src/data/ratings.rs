//! Ratings of scans by somebody else: a column of participants.tsv, or of a table that MRIQC writes.
use super::{Error, Scan, table::Table};
use std::{collections::HashMap, path::Path};

/// A number for some scans.
#[derive(Debug)]
pub struct Ratings {
    /// By `bids_name`, or by subject and session; without the prefixes `sub-` and `ses-`.
    of: HashMap<(String, Option<String>), f64>,
}

impl Ratings {
    /// Reads `column` of the table `path`, whose lines are scans (`bids_name`), or subjects (`participant_id`,
    /// `subject_id` or `subject`), perhaps with sessions (`session_id` or `session`).
    ///
    /// # Errors
    /// A table without such columns; cells that are neither numbers nor n/a.
    pub fn read(path: &Path, column: &str) -> Result<Ratings, Error> {
        let table = Table::read(path)?;
        let column = column.to_lowercase();
        table.require(&[&column])?;
        let subjects = ["participant_id", "subject_id", "subject"];
        if table.require(&["bids_name"]).is_err() && !subjects.iter().any(|s| table.require(&[s]).is_ok()) {
            table.require(&["participant_id"])?;
        }
        let mut of = HashMap::new();
        for row in table.rows() {
            let Some(rating) = row.parse::<f64>(&column, "a number, or n/a")?.filter(|r| r.is_finite())
            else {
                continue;
            };
            let first = |names: &[&str]| names.iter().find_map(|name| row.text(name));
            if let Some(name) = row.text("bids_name") {
                of.insert((name.to_owned(), None), rating);
            } else if let Some(subject) = first(&subjects) {
                let session = first(&["session_id", "session"]).map(|s| bare(s, "ses-"));
                of.insert((bare(subject, "sub-"), session), rating);
            }
        }
        Ok(Ratings { of })
    }

    /// The rating of a scan.
    pub fn get(&self, scan: &Scan) -> Option<f64> {
        let name = scan.path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.split(".nii").next().unwrap_or_default().to_owned();
        let subject = bare(&scan.subject, "sub-");
        let session = scan.session.as_deref().map(|s| bare(s, "ses-"));
        [(name, None), (subject.clone(), session), (subject, None)]
            .iter()
            .find_map(|key| self.of.get(key))
            .copied()
    }
}

fn bare(label: &str, prefix: &str) -> String {
    label.strip_prefix(prefix).unwrap_or(label).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::PathBuf};

    #[test]
    fn scans_are_found_by_name_and_by_subject() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.tsv");
        let scan = |name: &str| Scan::unknown(PathBuf::from(format!("d/{name}_T1w.nii.gz")));
        fs::write(&path, "bids_name\tCJV\nsub-1_ses-2_T1w\t0.5\nsub-2_T1w\tn/a\n").unwrap();
        let ratings = Ratings::read(&path, "cjv").unwrap();
        assert_eq!(["sub-1_ses-2", "sub-1", "sub-2"].map(|s| ratings.get(&scan(s))), [Some(0.5), None, None]);
        fs::write(&path, "participant_id\tsession_id\tr\nsub-1\tses-2\t3\nsub-2\tn/a\t4\n").unwrap();
        let ratings = Ratings::read(&path, "r").unwrap();
        assert_eq!(
            ["sub-1_ses-2", "sub-1_ses-1", "sub-2_ses-9"].map(|s| ratings.get(&scan(s))),
            [Some(3.0), None, Some(4.0)]
        );
        assert!(Ratings::read(&path, "no").unwrap_err().to_string().contains("no column \"no\""));
    }
}
