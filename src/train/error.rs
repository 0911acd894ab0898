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
    /// The device's memory is too small for the batch.
    #[error("{source}; {advice}")]
    Memory {
        /// What the device says.
        source: cuda::Error,
        /// What to do.
        advice: String,
    },
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

impl Error {
    /// Of a machine that was asked for with `batch` scans, for a training that recomputes or not: says what would fit,
    /// where memory is what it lacks.
    pub(super) fn of_machine(error: cuda::Error, batch: usize, recompute: bool) -> Error {
        let cuda::Error::OutOfMemory { asked, activations, free, .. } = error else { return error.into() };
        let (room, each) = (free.saturating_sub(asked - activations), activations.div_ceil(batch).max(1));
        let advice = match (room / each).min(batch - 1) {
            0 => "not even a batch of one scan would fit: take a smaller model or a coarser grid".to_owned(),
            fits => format!("a batch of {fits} would fit: --set train.batch={fits}"),
        };
        let less =
            if recompute { "" } else { "; --recompute takes less memory for activations, and more time" };
        Error::Memory { source: error, advice: advice + less }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_would_fit_is_named() {
        let error = |free| cuda::Error::OutOfMemory {
            asked: 1000,
            purpose: String::new(),
            activations: 800,
            free,
            total: 1200,
            device: "a device".into(),
        };
        let text = |free, recompute| Error::of_machine(error(free), 8, recompute).to_string();
        let [kept, recomputed] = [false, true].map(|recompute| text(600, recompute));
        assert!(recomputed.ends_with("a batch of 4 would fit: --set train.batch=4"), "{recomputed}");
        assert!(kept.contains("train.batch=4; --recompute takes less memory"), "{kept}");
        assert!(text(250, false).contains("not even a batch of one"), "{}", text(250, false));
    }
}
