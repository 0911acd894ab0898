//! Scans of a BIDS folder: `sub-*/[ses-*/]anat/*_T1w.nii[.gz]`, people from `participants.tsv`, brain masks from
//! `derivatives/*/`.
use super::{Error, scan::Scan, scan::is_nifti, table::Table};
use crate::error::OnFile;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

/// A BIDS file name taken apart: `sub-01_run-2_T1w.nii.gz` has entities sub = 01 and run = 2, and suffix T1w.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub stem: String,
    entities: Vec<(String, String)>,
    suffix: String,
}

impl Name {
    pub(super) fn of(path: &Path) -> Name {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let ends = [".gz", ".nii", ".hdr", ".img"];
        let stem = ends.iter().fold(&*name, |n, end| n.strip_suffix(end).unwrap_or(n)).to_owned();
        let (mut entities, mut suffix) = (Vec::new(), String::new());
        for piece in stem.split('_') {
            match piece.split_once('-') {
                Some((key, value)) => entities.push((key.to_owned(), value.to_owned())),
                None => suffix = piece.to_owned(),
            }
        }
        Name { stem, entities, suffix }
    }

    pub(super) fn entity(&self, key: &str) -> Option<&str> {
        self.entities.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// How well this mask suits `scan`: the number of entities they share; none if one of them differs or if
    /// the mask lies in another space.
    fn suits(&self, scan: &Name) -> Option<usize> {
        let elsewhere =
            self.entity("space").is_some_and(|s| !["T1w", "orig", "individual", "native"].contains(&s));
        let differs = scan.entities.iter().any(|(k, v)| self.entity(k).is_some_and(|mine| mine != v));
        let shared = scan.entities.iter().filter(|(k, v)| self.entity(k) == Some(v)).count();
        (!elsewhere && !differs).then_some(shared)
    }
}

/// The T1-weighted scans under `root`, by subject, session and name. People without a row have no age; rows
/// without a scan are ignored.
pub(super) fn scans(root: &Path) -> Result<Vec<Scan>, Error> {
    let people = People::read(&root.join("participants.tsv"))?;
    let derivatives = folders(&root.join("derivatives"), "")?;
    let mut scans = Vec::new();
    for subject in folders(root, "sub-")? {
        scans.extend(of_subject(root, &subject, &people, &derivatives)?);
    }
    Ok(scans)
}

/// What the BIDS folder around the file `path` says of it; `None` where there is none, or none that knows it.
pub(super) fn describe(path: &Path) -> Result<Option<Scan>, Error> {
    let is_subject =
        |folder: &&Path| folder.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"sub-"));
    // A subject's folder is at most two above: sub-*/ses-*/anat/.
    let Some(subject) = path.ancestors().skip(2).take(2).find(is_subject) else { return Ok(None) };
    let root = subject.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let people = People::read(&root.join("participants.tsv"))?;
    let derivatives = folders(&root.join("derivatives"), "")?;
    let name = subject.file_name().unwrap_or_default().to_string_lossy();
    let scan = of_subject(root, &name, &people, &derivatives)?.into_iter().find(|s| s.path.ends_with(path));
    Ok(scan.map(|scan| Scan { path: path.to_owned(), ..scan }))
}

/// The images that lie in `folder` itself, but for masks.
pub(super) fn plain(folder: &Path) -> Result<Vec<Scan>, Error> {
    // The voxels of a pair are found through its header.
    let voxels = |path: &Path| path.to_string_lossy().trim_end_matches(".gz").ends_with(".img");
    let images = files(folder, |name| name.suffix != "mask")?;
    Ok(images.into_iter().filter(|path| !voxels(path)).map(Scan::unknown).collect())
}

fn of_subject(
    root: &Path,
    subject: &str,
    people: &People,
    derivatives: &[String],
) -> Result<Vec<Scan>, Error> {
    let mut scans = Vec::new();
    let mut sessions = folders(&root.join(subject), "ses-")?;
    sessions.insert(0, String::new());
    for session in sessions {
        let visit = PathBuf::from(subject).join(&session).join("anat");
        let images = files(&root.join(&visit), |name| name.suffix == "T1w")?;
        if images.is_empty() {
            continue;
        }
        let mut masks = Vec::new();
        for derivative in derivatives {
            let folder = root.join("derivatives").join(derivative).join(&visit);
            masks.extend(files(&folder, |n| n.suffix == "mask" && n.entity("desc") == Some("brain"))?);
        }
        for path in images {
            let name = Name::of(&path);
            // The first of the best: `max_by_key` alone would take the last.
            let mask = masks
                .iter()
                .rev()
                .filter_map(|m| Some((Name::of(m).suits(&name)?, m)))
                .max_by_key(|(score, _)| *score)
                .map(|(_, mask)| mask.clone());
            let session = Some(session.clone()).filter(|s| !s.is_empty());
            let scan = Scan { subject: subject.to_owned(), session, mask, ..Scan::unknown(path) };
            scans.push(people.describe(scan));
        }
    }
    Ok(scans)
}

/// Rows of `participants.tsv`, by participant and, where there is a `session_id`, by session.
#[derive(Default)]
struct People(HashMap<(String, Option<String>), Scan>);

impl People {
    fn read(path: &Path) -> Result<People, Error> {
        if !path.exists() {
            return Ok(People::default());
        }
        let table = Table::read(path)?;
        table.require(&["participant_id"])?;
        let with = |prefix: &str, text: &str| {
            if text.starts_with(prefix) { text.to_owned() } else { format!("{prefix}{text}") }
        };
        let mut people = HashMap::new();
        for row in table.rows() {
            let Some(subject) = row.text("participant_id").map(|t| with("sub-", t)) else { continue };
            let session = row.text("session_id").map(|t| with("ses-", t));
            let scan = Scan {
                age: row.age()?,
                sex: row.text("sex").and_then(|s| s.parse().ok()),
                quality: row.quality(&["quality_rating", "quality"])?,
                ..Scan::unknown(PathBuf::new())
            };
            people.insert((subject, session), scan);
        }
        Ok(People(people))
    }

    /// `scan` with what the row of its session says of the person, or else the row of its subject.
    fn describe(&self, scan: Scan) -> Scan {
        let row = self
            .0
            .get(&(scan.subject.clone(), scan.session.clone()))
            .or_else(|| self.0.get(&(scan.subject.clone(), None)));
        match row {
            Some(row) => Scan { age: row.age, sex: row.sex, quality: row.quality, ..scan },
            None => scan,
        }
    }
}

/// Names of the folders in `folder` that begin with `prefix`, sorted; none if there is no such folder.
fn folders(folder: &Path, prefix: &str) -> Result<Vec<String>, Error> {
    let keep = |path: &PathBuf| path.is_dir();
    let names = list(folder)?.into_iter().filter(keep);
    let names = names.filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
    Ok(names.filter(|n| n.starts_with(prefix)).collect())
}

/// NIfTI files in `folder` that `wanted` accepts, sorted; none if there is no such folder.
fn files(folder: &Path, wanted: impl Fn(&Name) -> bool) -> Result<Vec<PathBuf>, Error> {
    Ok(list(folder)?.into_iter().filter(|p| is_nifti(p) && wanted(&Name::of(p))).collect())
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).on_file("read", folder)? {
        paths.push(entry.on_file("read", folder)?.path());
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
    }

    #[test]
    fn masks_go_to_the_scans_whose_entities_they_share() {
        let root = tempfile::tempdir().unwrap();
        touch(
            root.path(),
            &[
                "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz",
                "sub-02/ses-a/anat/sub-02_ses-a_run-1_T1w.nii.gz",
                "sub-02/ses-a/anat/sub-02_ses-a_run-2_T1w.nii.gz",
                "sub-02/ses-a/anat/sub-02_ses-a_T2w.nii.gz",
                "sub-01/anat/sub-01_T1w.nii",
                "derivatives/x/sub-01/anat/sub-01_space-MNI152_desc-brain_mask.nii.gz",
                "derivatives/x/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
                "derivatives/x/sub-02/ses-a/anat/sub-02_ses-a_desc-brain_mask.nii.gz",
                "derivatives/y/sub-02/ses-a/anat/sub-02_ses-a_run-2_desc-brain_mask.nii.gz",
            ],
        );
        fs::write(
            root.path().join("participants.tsv"),
            "\u{feff}participant_id\tsession_id\tAGE\tsex\n02\ta\t60\tF\nsub-02\tb\t61.5\tfemale\nsub-09\tn/a\t5\tM\n",
        )
        .unwrap();
        let found = scans(root.path()).unwrap();
        let brief: Vec<_> = found
            .iter()
            .map(|s| {
                let mask = s.mask.as_ref().map_or("-".into(), |m| Name::of(m).stem);
                format!("{} {} {:?} {mask}", s.subject, s.session.as_deref().unwrap_or("-"), s.age)
            })
            .collect();
        assert_eq!(
            brief,
            [
                "sub-01 - None sub-01_desc-brain_mask",
                "sub-02 ses-a Some(60.0) sub-02_ses-a_desc-brain_mask",
                "sub-02 ses-a Some(60.0) sub-02_ses-a_run-2_desc-brain_mask",
                "sub-02 ses-b Some(61.5) -",
            ]
        );
    }

    #[test]
    fn a_file_is_known_by_the_folder_around_it_and_plain_folders_are_listed() {
        let root = tempfile::tempdir().unwrap();
        let file = "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz";
        touch(
            root.path(),
            &[
                file,
                "derivatives/x/sub-01/ses-a/anat/sub-01_ses-a_desc-brain_mask.nii.gz",
                "plain/b.nii",
                "plain/a.hdr",
                "plain/a.img",
                "plain/a_mask.nii",
                "plain/notes.txt",
            ],
        );
        fs::write(root.path().join("participants.tsv"), "participant_id\tage\n01\t60\n").unwrap();
        let alone = crate::data::scans(&root.path().join(file)).unwrap();
        assert_eq!(alone, scans(root.path()).unwrap());
        assert!(alone[0].mask.is_some() && alone[0].age == Some(60.0));
        let plain = crate::data::scans(&root.path().join("plain")).unwrap();
        assert_eq!(plain.iter().map(|s| s.subject.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn impossible_ages_are_refused_by_line() {
        let root = tempfile::tempdir().unwrap();
        touch(root.path(), &["sub-01/anat/sub-01_T1w.nii.gz"]);
        let table = root.path().join("participants.tsv");
        for (age, bad) in
            [("n/a", false), ("", false), ("33.5", false), ("540", true), ("-1", true), ("x", true)]
        {
            fs::write(&table, format!("participant_id\tage\nsub-01\t{age}\n")).unwrap();
            match scans(root.path()) {
                Err(e) => {
                    assert!(bad && e.to_string().contains("line 2: age is"), "{e}");
                }
                Ok(found) => assert!(!bad && found.len() == 1),
            }
        }
        fs::write(&table, "name\tage\nsub-01\t3\n").unwrap();
        assert!(scans(root.path()).unwrap_err().to_string().contains("no column \"participant_id\""));
    }
}
