//! What every floor says when something goes wrong with a file; the richer errors of a floor are its own.
use std::{
    error::Error,
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
};

/// A file or folder that could not be used, by name.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot {action}", path.display())]
pub struct FileError {
    /// The file or folder.
    pub path: PathBuf,
    /// What was being done: "read", "write", "create".
    pub action: &'static str,
    /// The system's reason.
    #[source]
    pub source: io::Error,
}

/// Names the file in an I/O error.
pub trait OnFile<T> {
    /// Says which file, and what was being done with it ("read", "write", "create").
    fn on_file(self, action: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T> OnFile<T> for io::Result<T> {
    fn on_file(self, action: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError { path: path.to_owned(), action, source })
    }
}

/// `error` and its causes, outermost first, one a line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let _ = write!(text, "\n  because {e}");
        cause = e.source();
    }
    text
}
