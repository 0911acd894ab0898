//! What is known of one scan before it is read, and where lists of scans come from.
use super::{Error, bids, manifest};
use crate::error::OnFile;
use std::{
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
    /// "T1w" and the like, as BIDS writes it.
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

/// The scans of `dataset`, in a fixed order: of a BIDS folder, of a plain folder of NIfTI files, of a `.csv` or
/// `.tsv` manifest, or one NIfTI file. A file within a BIDS folder has the age and the mask that it has there.
///
/// # Errors
/// A dataset without scans; a table that lacks a column or holds an impossible value; unreadable folders.
pub fn scans(dataset: &Path) -> Result<Vec<Scan>, Error> {
    let is_folder = fs::metadata(dataset).on_file("read", dataset)?.is_dir();
    let extension = dataset.extension().map(|e| e.to_ascii_lowercase());
    let scans = if is_folder {
        let scans = bids::scans(dataset)?;
        if scans.is_empty() { bids::plain(dataset)? } else { scans }
    } else if extension.is_some_and(|e| e == "csv" || e == "tsv") {
        manifest::scans(dataset)?
    } else if is_nifti(dataset) {
        vec![bids::describe(dataset)?.unwrap_or_else(|| Scan::unknown(dataset.to_owned()))]
    } else {
        Vec::new()
    };
    if scans.is_empty() { Err(Error::NoScans { path: dataset.to_owned() }) } else { Ok(scans) }
}

impl Scan {
    /// The scan in the file `path`, of which nothing is known but what BIDS puts into names.
    pub fn unknown(path: PathBuf) -> Scan {
        let name = bids::Name::of(&path);
        let subject = name.entity("sub").map_or_else(|| name.stem.clone(), |s| format!("sub-{s}"));
        let session = name.entity("ses").map(|s| format!("ses-{s}"));
        Scan {
            subject,
            session,
            modality: "T1w".into(),
            path,
            mask: None,
            age: None,
            sex: None,
            quality: None,
        }
    }
}

/// Whether a file's name is that of a NIfTI image.
pub(super) fn is_nifti(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    [".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz"].iter().any(|end| name.ends_with(end))
}
