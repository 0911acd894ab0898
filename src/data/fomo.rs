//! Scans of a FOMO-style tree: `[dataset/]sub_*/ses_*/{t1|t2|flair|..}[_k].nii.gz`, people from the `participants.tsv`
//! of the dataset or of the tree. Images of one session whose names differ only in `_k` are repeats.
use super::{Error, bids, bids::Name, modality, people::People, scan::Scan, table::Ages};
use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
};

const SUBJECTS: [&str; 2] = ["sub_", "sub-"];
const SESSIONS: [&str; 2] = ["ses_", "ses-"];

/// One dataset of a tree.
struct Dataset {
    folder: PathBuf,
    /// Its folder's name, which goes before its subjects' names: they count from 1 in every dataset.
    name: Option<String>,
    /// Of the dataset's own table, then of the tree's.
    people: [People; 2],
}

/// The scans under `root`, by dataset, subject, session and name.
pub(super) fn scans(root: &Path, ages: Ages) -> Result<Vec<Scan>, Error> {
    let mut scans = Dataset::open(root, None, ages)?.scans()?;
    for name in bids::folders(root, &[""])? {
        if !SUBJECTS.iter().any(|prefix| name.starts_with(prefix)) {
            scans.extend(Dataset::open(&root.join(name), Some(root), ages)?.scans()?);
        }
    }
    Ok(scans)
}

/// What the tree around the file `path` says of it; `None` where there is none.
pub(super) fn describe(path: &Path, ages: Ages) -> Result<Option<Scan>, Error> {
    let path: Cow<'_, Path> = fs::canonicalize(path).map_or(Cow::Borrowed(path), Cow::Owned);
    let mut above = path.ancestors().skip(1);
    let (Some(session), Some(subject), Some(folder)) = (above.next(), above.next(), above.next()) else {
        return Ok(None);
    };
    let [session, subject] = [session, subject].map(|f| f.file_name().unwrap_or_default().to_string_lossy());
    if !SESSIONS.iter().any(|p| session.starts_with(p)) || !SUBJECTS.iter().any(|p| subject.starts_with(p)) {
        return Ok(None);
    }
    let scans = Dataset::open(folder, folder.parent(), ages)?.of_subject(&subject)?;
    Ok(scans.into_iter().find(|scan| scan.path == *path))
}

impl Dataset {
    /// The dataset in `folder`, which lies in `tree` if it is one of several.
    fn open(folder: &Path, tree: Option<&Path>, ages: Ages) -> Result<Dataset, Error> {
        let full = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        let name = full.file_name().map(|n| n.to_string_lossy().into_owned());
        // "PT001_OASIS1" is known by its name however it was reached.
        let numbered = |n: &String| {
            n.strip_prefix("PT").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        let table = |folder: &Path| People::read(&folder.join("participants.tsv"), ages);
        let name = name.filter(|n| tree.is_some() && folder.parent() == tree && !n.is_empty() || numbered(n));
        let people = [table(folder)?, tree.map_or(Ok(People::default()), table)?];
        Ok(Dataset { folder: folder.to_owned(), name, people })
    }

    fn scans(&self) -> Result<Vec<Scan>, Error> {
        let subjects = bids::folders(&self.folder, &SUBJECTS)?;
        let scans = subjects.iter().map(|subject| self.of_subject(subject));
        Ok(scans.collect::<Result<Vec<_>, _>>()?.concat())
    }

    fn of_subject(&self, subject: &str) -> Result<Vec<Scan>, Error> {
        let mut scans = Vec::new();
        for session in bids::folders(&self.folder.join(subject), &SESSIONS)? {
            for path in bids::files(&self.folder.join(subject).join(&session), is_head)? {
                scans.push(self.scan(subject, &session, path));
            }
        }
        Ok(scans)
    }

    fn scan(&self, subject: &str, session: &str, path: PathBuf) -> Scan {
        let stem = Name::of(&path).stem;
        let (label, run) = match stem.rsplit_once('_') {
            Some((label, k)) if k.parse::<u32>().is_ok() => (label, Some(format!("run-{k}"))),
            _ => (stem.as_str(), None),
        };
        let said = modality::of_label(label).or_else(|| modality::of_name(label));
        let person = subject;
        let subject = match &self.name {
            Some(dataset) => format!("{dataset}_{subject}"),
            None => subject.to_owned(),
        };
        let mut scan = Scan {
            subject,
            session: Some(session.to_owned()),
            run,
            modality: said.unwrap_or_else(|| modality::UNKNOWN.into()),
            ..Scan::unknown(path)
        };
        let _known = self.people.iter().any(|p| p.describe(&mut scan, self.name.as_deref(), person));
        // The sources of such a collection are its sites, where it does not know better.
        scan.site = scan.site.or_else(|| self.name.clone());
        scan
    }
}

/// Whether a file of this name is the image of a head: no mask or segmentation.
fn is_head(name: &Name) -> bool {
    !["mask", "seg", "dseg", "segmentation", "label", "labels"].iter().any(|end| name.stem.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_have_datasets_repeats_and_people() {
        let root = tempfile::tempdir().unwrap();
        for file in [
            "PT001_OASIS1/sub_1/ses_1/t1.nii.gz",
            "PT001_OASIS1/sub_1/ses_1/t1_2.nii.gz",
            "PT001_OASIS1/sub_1/ses_1/t1_mask.nii.gz",
            "PT001_OASIS1/sub_2/ses_1/T2-FLAIR.nii.gz",
            "PT002_IXI/sub_1/ses_1/pet_fdg.nii.gz",
            "PT002_IXI/sub_1/ses_2/scan.nii.gz",
        ] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        fs::write(
            root.path().join("participants.tsv"),
            "participant_id\tsession_id\tdataset\tsex\tage\tgroup\n\
             sub_1\tses_1\tPT001_OASIS1\tF\t74\tNormal control\nsub_1\tses_1\tPT002_IXI\tM\t30\t\n",
        )
        .unwrap();
        fs::write(
            root.path().join("PT001_OASIS1/participants.tsv"),
            "participant_id\tage\tgroup\tsite\nsub_2\t80\talzheimer's disease\tWashU\n",
        )
        .unwrap();
        let found = scans(root.path(), Ages::Refused).unwrap();
        let text = |t: &Option<String>| t.clone().unwrap_or("-".into());
        let brief = |s: &Scan| {
            let age = s.age.map_or("-".into(), |a| a.to_string());
            let [session, run, site, group] = [&s.session, &s.run, &s.site, &s.group].map(text);
            format!("{} {session} {run} {} {age} {site} {group}", s.subject, s.modality)
        };
        assert_eq!(
            found.iter().map(brief).collect::<Vec<_>>(),
            [
                "PT001_OASIS1_sub_1 ses_1 - T1w 74 PT001_OASIS1 CN",
                "PT001_OASIS1_sub_1 ses_1 run-2 T1w 74 PT001_OASIS1 CN",
                "PT001_OASIS1_sub_2 ses_1 - FLAIR 80 WashU AD",
                "PT002_IXI_sub_1 ses_1 - PET-FDG 30 PT002_IXI -",
                "PT002_IXI_sub_1 ses_2 - unknown - PT002_IXI -",
            ]
        );
        // The same people, whether the tree, one of its datasets or a file of it is given.
        let one = crate::data::scans(&root.path().join("PT001_OASIS1"), &[]).unwrap().scans;
        assert_eq!(one[0].subject, "PT001_OASIS1_sub_1");
        let file = crate::data::scans(&found[0].path, &["T1w".into()]).unwrap().scans;
        assert_eq!((file[0].subject.as_str(), file[0].age), ("PT001_OASIS1_sub_1", Some(74.0)));
        let t1w = crate::data::scans(root.path(), &["T1w".into()]).unwrap();
        assert_eq!((t1w.scans.len(), t1w.unsaid.len()), (2, 1));
        let none = crate::data::scans(root.path(), &["T2w".into()]).unwrap_err().to_string();
        assert!(
            none.ends_with("no T2w scans; there are: FLAIR (1), PET-FDG (1), T1w (2), unknown (1)"),
            "{none}"
        );
    }
}
