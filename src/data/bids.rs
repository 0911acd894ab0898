//! Scans of a BIDS folder: images in `sub-*/[ses-*/]anat` and `.../pet`, people from `participants.tsv`, brain masks
//! from `derivatives/*/`, PET tracers from names or their `.json`.
use super::{
    Error, modality,
    people::People,
    scan::{Scan, is_nifti},
    table::Ages,
};
use crate::error::OnFile;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The name of an image without what its kind of file adds.
pub fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ends = [".gz", ".nii", ".hdr", ".img"];
    ends.iter().fold(&*name, |n, end| n.strip_suffix(end).unwrap_or(n)).to_owned()
}

/// A BIDS file name taken apart: `sub-01_run-2_T1w.nii.gz` has entities sub = 01 and run = 2, and suffix T1w.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub stem: String,
    entities: Vec<(String, String)>,
    suffix: String,
}

impl Name {
    pub(super) fn of(path: &Path) -> Name {
        let stem = stem(path);
        let (mut entities, mut suffix) = (Vec::new(), String::new());
        for piece in stem.split('_') {
            match piece.split_once('-') {
                Some((key, value)) => entities.push((key.to_owned(), value.to_owned())),
                None => suffix = piece.to_owned(),
            }
        }
        Name { stem, entities, suffix }
    }

    /// The modality of the image `path` of this name, in the BIDS folder `root`.
    fn modality(&self, path: &Path, root: &Path) -> String {
        if self.suffix != "pet" {
            return modality::of_suffix(&self.suffix, self.entity("ce").is_some());
        }
        let named = self.entity("trc").map(str::to_owned);
        modality::pet(named.or_else(|| tracer_beside(path, self, root)).as_deref())
    }

    pub(super) fn entity(&self, key: &str) -> Option<&str> {
        self.entities.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// How well this mask suits `scan`: the number of entities they share; none if one of them differs or if
    /// the mask lies in another space. A mask that names no space is the T1w scan's, or the one PET scan's.
    fn suits(&self, scan: &Name) -> Option<usize> {
        let suffix = scan.suffix.as_str();
        let is_own =
            |s: &str| s == suffix || (suffix == "T1w" && ["orig", "individual", "native"].contains(&s));
        let claims = ["space", "mod"].map(|key| self.entity(key));
        let elsewhere = claims.iter().flatten().any(|claim| !is_own(claim));
        let claimed = claims.iter().flatten().any(|claim| is_own(claim));
        let unclaimed = !claimed && !["T1w", "pet"].contains(&suffix);
        let differs = scan.entities.iter().any(|(k, v)| self.entity(k).is_some_and(|mine| mine != v));
        let shared = scan.entities.iter().filter(|(k, v)| self.entity(k) == Some(v)).count();
        (!elsewhere && !unclaimed && !differs).then_some(shared)
    }
}

/// Suffixes of files in `anat` that are no images of a head.
const NO_IMAGES: [&str; 4] = ["mask", "defacemask", "dseg", "probseg"];

/// The scans under `root`, by subject, session and name. People without a row have no age; rows without a scan are
/// ignored.
pub(super) fn scans(root: &Path, ages: Ages) -> Result<Vec<Scan>, Error> {
    let people = People::read(&root.join("participants.tsv"), ages)?;
    let derivatives = folders(&root.join("derivatives"), &[""])?;
    let mut scans = Vec::new();
    for subject in folders(root, &["sub-"])? {
        scans.extend(of_subject(root, &subject, &people, &derivatives)?);
    }
    Ok(scans)
}

/// What the BIDS folder around the file `path` says of it; `None` where there is none, or none that knows it.
pub(super) fn describe(path: &Path, ages: Ages) -> Result<Option<Scan>, Error> {
    let is_subject =
        |folder: &&Path| folder.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"sub-"));
    // A subject's folder is at most two above: sub-*/ses-*/anat/.
    let Some(subject) = path.ancestors().skip(2).take(2).find(is_subject) else { return Ok(None) };
    let root = subject.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let people = People::read(&root.join("participants.tsv"), ages)?;
    let derivatives = folders(&root.join("derivatives"), &[""])?;
    let name = subject.file_name().unwrap_or_default().to_string_lossy();
    let scan = of_subject(root, &name, &people, &derivatives)?.into_iter().find(|s| s.path.ends_with(path));
    Ok(scan.map(|scan| Scan { path: path.to_owned(), ..scan }))
}

/// The images that lie in `folder` itself, but for masks.
pub(super) fn plain(folder: &Path) -> Result<Vec<Scan>, Error> {
    let images = files(folder, |name| name.suffix != "mask")?;
    Ok(images.into_iter().map(Scan::unknown).collect())
}

fn of_subject(
    root: &Path,
    subject: &str,
    people: &People,
    derivatives: &[String],
) -> Result<Vec<Scan>, Error> {
    let mut scans = Vec::new();
    let mut sessions = folders(&root.join(subject), &["ses-"])?;
    sessions.insert(0, String::new());
    for session in sessions {
        for kind in ["anat", "pet"] {
            let visit = PathBuf::from(subject).join(&session).join(kind);
            let wanted = |name: &Name| match kind {
                "pet" => name.suffix == "pet",
                _ => !NO_IMAGES.contains(&name.suffix.as_str()),
            };
            let images = files(&root.join(&visit), wanted)?;
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
                let modality = name.modality(&path, root);
                let mut scan =
                    Scan { subject: subject.to_owned(), session, modality, mask, ..Scan::unknown(path) };
                people.describe(&mut scan, None, subject);
                scans.push(scan);
            }
        }
    }
    Ok(scans)
}

/// The `TracerName` of the PET image `path`: from the `.json` of its name or, nearest first, one higher up whose
/// entities it has (BIDS calls this inheritance).
fn tracer_beside(path: &Path, name: &Name, root: &Path) -> Option<String> {
    let folders = path.ancestors().skip(1).take_while(|folder| folder.starts_with(root));
    folders.into_iter().find_map(|folder| {
        let mut candidates: Vec<(usize, PathBuf)> = list(folder)
            .ok()?
            .into_iter()
            .filter_map(|file| {
                let is_json = file.extension().is_some_and(|e| e == "json");
                let other = Name::of(&file.with_extension(""));
                let inherited = other.suffix == name.suffix
                    && other.entities.iter().all(|(key, value)| name.entity(key) == Some(value));
                (is_json && inherited).then_some((other.entities.len(), file))
            })
            .collect();
        candidates.sort();
        candidates.iter().rev().find_map(|(_, file)| {
            let json: serde_json::Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
            Some(json["TracerName"].as_str()?.to_owned())
        })
    })
}

/// Names of the folders in `folder` that begin with one of `prefixes`, sorted; none if there is no such folder.
pub(super) fn folders(folder: &Path, prefixes: &[&str]) -> Result<Vec<String>, Error> {
    let keep = |path: &PathBuf| path.is_dir();
    let names = list(folder)?.into_iter().filter(keep);
    let names = names.filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
    Ok(names.filter(|n| prefixes.iter().any(|p| n.starts_with(p))).collect())
}

/// NIfTI images in `folder` whose names `wanted` accepts, sorted; none if there is no such folder. Of a pair, the
/// header.
pub(super) fn files(folder: &Path, wanted: impl Fn(&Name) -> bool) -> Result<Vec<PathBuf>, Error> {
    // The voxels of a pair are found through its header.
    let voxels = |path: &Path| path.to_string_lossy().trim_end_matches(".gz").ends_with(".img");
    let keep = |path: &PathBuf| is_nifti(path) && !voxels(path) && wanted(&Name::of(path));
    Ok(list(folder)?.into_iter().filter(keep).collect())
}

/// What lies in `folder`, sorted; nothing if there is no such folder.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
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
                "sub-02/ses-a/anat/sub-02_ses-a_FLAIR.nii.gz",
                "sub-02/ses-a/anat/sub-02_ses-a_ce-gadolinium_T1w.nii.gz",
                "sub-02/ses-a/pet/sub-02_ses-a_trc-18FFDG_pet.nii.gz",
                "sub-02/ses-b/pet/sub-02_ses-b_pet.nii.gz",
                "sub-01/pet/sub-01_pet.nii.gz",
                "sub-01/anat/sub-01_T1w.nii",
                "derivatives/x/sub-01/anat/sub-01_space-MNI152_desc-brain_mask.nii.gz",
                "derivatives/x/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
                "derivatives/x/sub-02/ses-a/anat/sub-02_ses-a_desc-brain_mask.nii.gz",
                "derivatives/y/sub-02/ses-a/anat/sub-02_ses-a_run-2_desc-brain_mask.nii.gz",
                "derivatives/y/sub-02/ses-a/anat/sub-02_ses-a_space-FLAIR_desc-brain_mask.nii.gz",
            ],
        );
        fs::write(
            root.path().join("participants.tsv"),
            "\u{feff}participant_id\tsession_id\tAGE\tsex\n02\ta\t60\tF\nsub-02\tb\t61.5\tfemale\nsub-09\tn/a\t5\tM\n",
        )
        .unwrap();
        fs::write(
            root.path().join("sub-02/ses-b/sub-02_ses-b_pet.json"),
            r#"{"TracerName": "[18F]florbetapir"}"#,
        )
        .unwrap();
        let found = scans(root.path(), Ages::Refused).unwrap();
        let brief: Vec<_> = found
            .iter()
            .map(|s| {
                let mask = s.mask.as_ref().map_or("-".into(), |m| Name::of(m).stem);
                let [session, run] = [&s.session, &s.run].map(|id| id.as_deref().unwrap_or("-"));
                format!("{} {session} {run} {} {:?} {mask}", s.subject, s.modality, s.age)
            })
            .collect();
        assert_eq!(
            brief,
            [
                "sub-01 - - T1w None sub-01_desc-brain_mask",
                "sub-01 - - PET None -",
                "sub-02 ses-a - FLAIR Some(60.0) sub-02_ses-a_space-FLAIR_desc-brain_mask",
                "sub-02 ses-a - T2w Some(60.0) -",
                "sub-02 ses-a - T1w-CE Some(60.0) sub-02_ses-a_desc-brain_mask",
                "sub-02 ses-a run-1 T1w Some(60.0) sub-02_ses-a_desc-brain_mask",
                "sub-02 ses-a run-2 T1w Some(60.0) sub-02_ses-a_run-2_desc-brain_mask",
                "sub-02 ses-a - PET-FDG Some(60.0) -",
                "sub-02 ses-b - T1w Some(61.5) -",
                "sub-02 ses-b - PET-AV45 Some(61.5) -",
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
        let t1w = ["T1w".to_owned()];
        let found = |path: &Path| crate::data::scans(path, &t1w).unwrap().scans;
        let alone = found(&root.path().join(file));
        assert_eq!(alone, scans(root.path(), Ages::Refused).unwrap());
        assert!(alone[0].mask.is_some() && alone[0].age == Some(60.0));
        let plain = found(&root.path().join("plain"));
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
            match scans(root.path(), Ages::Refused) {
                Err(e) => {
                    assert!(bad && e.to_string().contains("line 2: age is"), "{e}");
                }
                Ok(found) => assert!(!bad && found.len() == 1),
            }
        }
        fs::write(&table, "name\tage\nsub-01\t3\n").unwrap();
        assert!(
            scans(root.path(), Ages::Refused)
                .unwrap_err()
                .to_string()
                .contains("no column \"participant_id\"")
        );
    }
}
