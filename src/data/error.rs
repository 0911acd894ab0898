//! What can be wrong with a dataset, a cache or a split, and what to do about it.
use crate::error::FileError;
use std::path::PathBuf;

/// Why many volumes could not be found, prepared or divided.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// One volume that cannot be used.
    #[error(transparent)]
    Image(#[from] crate::image::Error),
    /// A table whose text cannot be taken apart.
    #[error("{}: not a readable table", path.display())]
    Table {
        /// The table.
        path: PathBuf,
        /// What the parser says, with the line.
        #[source]
        source: csv::Error,
    },
    /// A table without a column that is needed.
    #[error("{}: no column \"{column}\"; the columns are: {}", path.display(), present.join(", "))]
    Column {
        /// The table.
        path: PathBuf,
        /// What is missing.
        column: String,
        /// What is there.
        present: Vec<String>,
    },
    /// A cell that cannot be right.
    #[error("{}, line {line}: {column} is \"{value}\", but must be {expected}", path.display())]
    Value {
        /// The table.
        path: PathBuf,
        /// Line of the file, the header being line 1.
        line: u64,
        /// Name of the column.
        column: String,
        /// What stands there.
        value: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// A dataset in which nothing was found.
    #[error(
        "{}: no scans found; expected a BIDS folder (sub-*/anat/*_T1w.nii.gz), a FOMO-style tree \
         (sub_*/ses_*/t1.nii.gz), a folder of NIfTI files, a .csv or .tsv manifest with a column \"path\", or one \
         NIfTI file",
        path.display()
    )]
    NoScans {
        /// What was searched.
        path: PathBuf,
    },
    /// A dataset that has scans, but none of those asked for.
    #[error(
        "{}: no {} scans; there are: {}",
        path.display(), asked.join(" or "), present.join(", ")
    )]
    NoModality {
        /// The dataset.
        path: PathBuf,
        /// The modalities asked for.
        asked: Vec<String>,
        /// The modalities it has, each with a count.
        present: Vec<String>,
    },
    /// A folder that is not to be written over.
    #[error("{}: already holds a dataset; give another --out, or remove it first", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A scan that was read, but cannot be prepared.
    #[error("{}: cannot be prepared", path.display())]
    Scan {
        /// The image file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: crate::image::Error,
    },
    /// A scan that cannot be brought to its subject's T1w, since that one fails.
    #[error("{}: the T1w that it would be brought to cannot be prepared", path.display())]
    Anchor {
        /// The image file.
        path: PathBuf,
        /// What is wrong with the T1w.
        #[source]
        source: Box<Error>,
    },
    /// A scan of someone without a T1w.
    #[error("{}: no session of {subject} has a T1w to bring it to", path.display())]
    NoT1w {
        /// The image file.
        path: PathBuf,
        /// Whose scan it is.
        subject: String,
    },
    /// A PET scan without the reference region that was asked for.
    #[error("{}: no file *_label-{label}_mask.nii.gz lies beside its subject's brain mask", path.display())]
    NoReference {
        /// The image file.
        path: PathBuf,
        /// The region.
        label: String,
    },
    /// What stands beside an image in a `.json` makes no sense.
    #[error("{}: {reason}", path.display())]
    Sidecar {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A list of modalities that cannot be prepared.
    #[error("modalities {given:?}: {reason}")]
    Modalities {
        /// The list.
        given: Vec<String>,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Every scan of a dataset failed.
    #[error("{}: none of the {} scans could be prepared", path.display(), skipped.len())]
    AllFailed {
        /// The dataset.
        path: PathBuf,
        /// The scans, and why they failed.
        skipped: Vec<super::Skipped>,
    },
    /// A finished cache of something else stands where a cache is to be made.
    #[error(
        "{}: holds a cache made with {what}; give another --out, or remove that folder to make it anew",
        path.display()
    )]
    CacheDiffers {
        /// The cache.
        path: PathBuf,
        /// The difference.
        what: String,
    },
    /// A cache that is unfinished, damaged or of another version.
    #[error("{}: {fault}; make it anew with `gyrus prepare`", path.display())]
    Cache {
        /// The file in the cache.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
    /// A setting of the augmentation that makes no sense.
    #[error("augment.{key} is {value}, but must be from 0 to {most}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// What it is.
        value: f32,
        /// The most it may be.
        most: f32,
    },
    /// A file that says which part each subject is in, but not so that it can be followed.
    #[error("{}: {fault}", path.display())]
    Assignment {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with the subjects' names.
        fault: String,
    },
    /// A split that cannot be made.
    #[error("cannot split {subjects} subjects {how}; {advice}")]
    Split {
        /// Subjects at hand.
        subjects: usize,
        /// What was asked for.
        how: String,
        /// What would work.
        advice: &'static str,
    },
}
