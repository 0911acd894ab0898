//! What is known of one scan before it is read, and where lists of scans come from.
use super::{Error, bids, fomo, manifest, modality, modality::UNKNOWN, table::Ages};
use crate::error::OnFile;
use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

/// One scan of a dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct Scan {
    /// Whose scan it is; splits never part scans of one subject.
    pub subject: String,
    /// The visit, where a dataset has several.
    pub session: Option<String>,
    /// The number of the repeat, where a session has several scans of one modality.
    pub run: Option<String>,
    /// "T1w" and the like, as BIDS writes it; of PET with its tracer, "PET-FDG"; [`UNKNOWN`] where nothing says it.
    pub modality: String,
    /// The image file.
    pub path: PathBuf,
    /// The brain mask that belongs to it.
    pub mask: Option<PathBuf>,
    /// Age in years at the scan.
    pub age: Option<f32>,
    /// Sex, where it is recorded as female or male.
    pub sex: Option<Sex>,
    /// A rating of the image, more is better; its scale is the dataset's own.
    pub quality: Option<f32>,
    /// Where it was made, where that is recorded.
    pub site: Option<String>,
    /// The person's diagnosis, where that is recorded; "CN" for healthy controls.
    pub group: Option<String>,
}

/// The scans of a dataset, and the files that nobody knows the modality of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// In a fixed order.
    pub scans: Vec<Scan>,
    /// Images left out because nothing says their modality, though it is said of others.
    pub unsaid: Vec<PathBuf>,
}

/// Sex as tables record it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sex {
    /// "F", "female".
    Female,
    /// "M", "male".
    Male,
}

impl FromStr for Sex {
    type Err = ();
    fn from_str(text: &str) -> Result<Sex, ()> {
        match text.to_ascii_lowercase().as_str() {
            "f" | "female" | "w" | "woman" => Ok(Sex::Female),
            "m" | "male" | "man" => Ok(Sex::Male),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Sex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sex::Female => "F",
            Sex::Male => "M",
        })
    }
}

/// The scans of `dataset` that are of one of `modalities`, or all of them if none is given: of a BIDS folder, a
/// FOMO-style tree, a plain folder of NIfTI files, a `.csv` or `.tsv` manifest, or one NIfTI file. A file within a BIDS
/// folder or a FOMO-style tree has the age and the mask that it has there.
///
/// Where nothing in the dataset says a modality (a plain folder, a manifest without that column) and one is asked for,
/// all its scans are taken as that one. Otherwise a scan whose modality is not said is never guessed at: it is named in
/// [`Found::unsaid`] or, where all are asked for, is of modality [`UNKNOWN`].
///
/// # Errors
/// A dataset without such scans; a table that lacks a column or holds an impossible value; unreadable folders.
pub fn scans(dataset: &Path, modalities: &[String]) -> Result<Found, Error> {
    let mut scans = search(dataset, Ages::Refused)?;
    if modalities.is_empty() {
        return Ok(Found { scans, unsaid: Vec::new() });
    }
    if let [modality] = modalities
        && scans.iter().all(|s| s.modality == UNKNOWN)
    {
        scans.iter_mut().for_each(|s| s.modality.clone_from(modality));
    }
    let (wanted, others): (Vec<_>, Vec<_>) =
        scans.into_iter().partition(|scan| modalities.contains(&scan.modality));
    if wanted.is_empty() {
        let mut counts = BTreeMap::<String, usize>::new();
        others.into_iter().for_each(|scan| *counts.entry(scan.modality).or_default() += 1);
        let present = counts.iter().map(|(modality, count)| format!("{modality} ({count})")).collect();
        return Err(Error::NoModality { path: dataset.to_owned(), asked: modalities.to_vec(), present });
    }
    let unsaid = others.into_iter().filter(|s| s.modality == UNKNOWN).map(|s| s.path).collect();
    Ok(Found { scans: wanted, unsaid })
}

/// All scans of `dataset`, with ages as they stand in its tables: to be looked at, not to be trained on.
///
/// # Errors
/// A dataset without scans; a table that lacks a column; unreadable folders.
pub fn all_scans(dataset: &Path) -> Result<Vec<Scan>, Error> {
    search(dataset, Ages::Kept)
}

/// All scans of `dataset`; see [`scans`].
fn search(dataset: &Path, ages: Ages) -> Result<Vec<Scan>, Error> {
    let is_folder = fs::metadata(dataset).on_file("read", dataset)?.is_dir();
    let extension = dataset.extension().map(|e| e.to_ascii_lowercase());
    let scans = if is_folder {
        let mut scans = bids::scans(dataset, ages)?;
        if scans.is_empty() {
            scans = fomo::scans(dataset, ages)?;
        }
        if scans.is_empty() { bids::plain(dataset)? } else { scans }
    } else if extension.is_some_and(|e| e == "csv" || e == "tsv") {
        manifest::scans(dataset, ages)?
    } else if is_nifti(dataset) {
        let known = match bids::describe(dataset, ages)? {
            None => fomo::describe(dataset, ages)?,
            known => known,
        };
        vec![known.unwrap_or_else(|| Scan::unknown(dataset.to_owned()))]
    } else {
        Vec::new()
    };
    if scans.is_empty() { Err(Error::NoScans { path: dataset.to_owned() }) } else { Ok(scans) }
}

impl Scan {
    /// The scan in the file `path`, of which nothing is known but what its name says.
    pub fn unknown(path: PathBuf) -> Scan {
        let name = bids::Name::of(&path);
        let subject = name.entity("sub").map_or_else(|| name.stem.clone(), |s| format!("sub-{s}"));
        let session = name.entity("ses").map(|s| format!("ses-{s}"));
        let run = name.entity("run").map(|r| format!("run-{r}"));
        let modality = modality::of_name(&name.stem).unwrap_or_else(|| UNKNOWN.into());
        Scan {
            subject,
            session,
            run,
            modality,
            path,
            mask: None,
            age: None,
            sex: None,
            quality: None,
            site: None,
            group: None,
        }
    }
}

/// Whether a file's name is that of a NIfTI image.
pub fn is_nifti(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    [".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz"].iter().any(|end| name.ends_with(end))
}
