//! What can go wrong in a run.
use crate::error::FileError;
use crate::machine::cuda;
use crate::program::arrays;
use std::path::PathBuf;

/// What can go wrong in a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of arrays could not be used.
    #[error(transparent)]
    Arrays(#[from] arrays::Error),
    /// The data could not be used.
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    /// A model file that does not fit.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The device could not be used.
    #[error(transparent)]
    Device(#[from] cuda::Error),
    /// Settings that do not fit together, or do not fit the data.
    #[error("{0}")]
    Setup(String),
    /// The loss is no longer a number.
    #[error("the loss is not finite at step {step}; {culprit}")]
    NotFinite {
        /// The update that was being computed.
        step: u64,
        /// Which scans it came from, and what to do.
        culprit: String,
    },
}
