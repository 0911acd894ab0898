//! Scans listed in a table: a column `path`, and where known `mask`, `subject`, `session`, `run`, `modality`,
//! `tracer`, `age`, `sex`, `site`, `group` and `quality`. Other columns are ignored; relative paths start at the
//! table's folder.
use super::{
    Error, modality, people,
    scan::Scan,
    table::{Ages, Row, Table},
};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

/// The scans that the table `path` lists, by subject, session and path.
pub(super) fn scans(path: &Path, ages: Ages) -> Result<Vec<Scan>, Error> {
    let table = Table::read(path, ages)?;
    table.require(&["path"])?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut seen = HashSet::new();
    let mut scans = Vec::new();
    for row in table.rows() {
        let Some(image) = row.text("path") else {
            return Err(row.refuse("path", "the path of an image"));
        };
        if !seen.insert(image) {
            return Err(row.refuse("path", "listed once"));
        }
        let guess = Scan::unknown(folder.join(image));
        let given = |column| row.text(column).map(str::to_owned);
        scans.push(Scan {
            subject: given("subject").or_else(|| given("participant_id")).unwrap_or(guess.subject),
            session: given("session").or_else(|| given("session_id")).or(guess.session),
            run: given("run").or(guess.run),
            modality: modality_of(&row).unwrap_or(guess.modality),
            mask: row.text("mask").map(|m| folder.join(m)),
            age: row.age()?,
            sex: row.text("sex").and_then(|s| s.parse().ok()),
            quality: row.quality(&["quality", "quality_rating"])?,
            site: people::site(&row),
            group: people::group(&row),
            path: guess.path,
        });
    }
    let key = |s: &Scan| -> (String, Option<String>, PathBuf) {
        (s.subject.clone(), s.session.clone(), s.path.clone())
    };
    scans.sort_by_cached_key(key);
    Ok(scans)
}

/// What the row says of the modality: a common spelling, or else the table's own word.
fn modality_of(row: &Row<'_>) -> Option<String> {
    let tracer = row.text("tracer");
    let text = row.text("modality").or(tracer.map(|_| "PET"))?;
    let known = modality::of_label(text).unwrap_or_else(|| text.to_owned());
    Some(if known == "PET" { modality::pet(tracer) } else { known })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Sex;
    use std::fs;

    #[test]
    fn rows_become_scans_with_paths_from_the_tables_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.csv");
        fs::write(&path, "Path,age,site,sex,mask\nb.nii.gz,44,X,F,m/b.nii\nsub-7_ses-2_T1w.nii,n/a,Y,,\n")
            .unwrap();
        let found = scans(&path, Ages::Refused).unwrap();
        assert_eq!(found[0].subject, "b");
        assert_eq!(found[0].mask, Some(folder.path().join("m/b.nii")));
        assert_eq!((found[0].age, found[0].sex), (Some(44.0), Some(Sex::Female)));
        assert_eq!((found[1].subject.as_str(), found[1].session.as_deref()), ("sub-7", Some("ses-2")));
    }

    #[test]
    fn missing_columns_and_repeated_images_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.tsv");
        fs::write(&path, "file\tage\na.nii\t3\n").unwrap();
        assert!(
            scans(&path, Ages::Refused)
                .unwrap_err()
                .to_string()
                .ends_with("no column \"path\"; the columns are: file, age")
        );
        fs::write(&path, "path\na.nii\na.nii\n").unwrap();
        assert!(
            scans(&path, Ages::Refused)
                .unwrap_err()
                .to_string()
                .contains("line 3: path is \"a.nii\", but must be listed once")
        );
    }
}
