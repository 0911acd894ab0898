//! A run's log: named numbers at a step, as JSON lines (`metrics.jsonl`) and for TensorBoard.
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::events::EventFile;
use crate::{
    error::{FileError, OnFile},
    file::write_whole,
};

/// What a log is called in its run's folder.
pub const METRICS: &str = "metrics.jsonl";

/// The lines of the log in `folder`: none where there is no log, and without a last one that is still being written.
///
/// # Errors
/// A log that cannot be read.
pub fn lines(folder: &Path) -> Result<Vec<Value>, FileError> {
    let path = folder.join(METRICS);
    let text = match fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        text => text.on_file("read", &path)?,
    };
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// The log of one run. Every step is one line `{"step":7,"loss":0.25}`, handed to the system at once, so a killed run
/// has all of its lines. Lines hold no times: two runs of one seed write the same file.
pub struct Log {
    path: PathBuf,
    lines: File,
    events: EventFile,
}

impl Log {
    /// Starts an empty log in `folder`, which exists; an earlier log there is replaced.
    ///
    /// # Errors
    /// [`FileError`] when a file cannot be created.
    pub fn create(folder: &Path) -> Result<Log, FileError> {
        let path = folder.join(METRICS);
        let lines = File::create(&path).on_file("create", &path)?;
        Ok(Log { path, lines, events: EventFile::create(folder, 0)? })
    }

    /// Goes on with the log of a run that resumes after `step`: what was logged beyond it is dropped, as it will be
    /// computed again, and so is a last line that was cut short.
    ///
    /// # Errors
    /// [`FileError`] when the log cannot be read or rewritten, or when a line before the last is no log line.
    pub fn resume(folder: &Path, step: u64) -> Result<Log, FileError> {
        let path = folder.join(METRICS);
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            text => text.on_file("read", &path)?,
        };
        let kept = up_to(&text, step).on_file("resume", &path)?;
        write_whole(&path, |file| file.write_all(kept.as_bytes()))?;
        let lines = File::options().append(true).open(&path).on_file("write", &path)?;
        Ok(Log { path, lines, events: EventFile::create(folder, step + 1)? })
    }

    /// Logs values of `step` by name; JSON has `null` for one that is not finite.
    ///
    /// # Errors
    /// [`FileError`] when a file cannot be written.
    pub fn write(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), FileError> {
        let mut line = Map::from_iter([("step".to_owned(), Value::from(step))]);
        line.extend(values.iter().map(|&(name, x)| (name.to_owned(), Value::from(x))));
        let line = Value::Object(line).to_string() + "\n";
        self.lines.write_all(line.as_bytes()).on_file("write", &self.path)?;
        self.events.scalars(step, values)
    }
}

/// The lines of `text` whose step is at most `step`.
fn up_to(text: &str, step: u64) -> io::Result<String> {
    let mut kept = String::new();
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let found = serde_json::from_str::<Value>(line).ok().and_then(|line| line.get("step")?.as_u64());
        match found {
            Some(found) if line.ends_with('\n') => {
                if found <= step {
                    kept.push_str(line);
                }
            }
            _ if !line.ends_with('\n') => {}
            _ => {
                let message =
                    format!("line {} is no log line; expected {{\"step\":..}}; mend or remove it", i + 1);
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(folder: &Path) -> String {
        fs::read_to_string(folder.join(METRICS)).unwrap()
    }

    #[test]
    fn a_step_is_a_line_and_what_is_not_finite_is_null() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(folder.path()).unwrap();
        log.write(1, &[("loss", 0.25), ("grad_norm", f64::NAN)]).unwrap();
        assert_eq!(lines(folder.path()), "{\"step\":1,\"loss\":0.25,\"grad_norm\":null}\n");
    }

    #[test]
    fn resuming_drops_later_steps_and_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(folder.path()).unwrap();
        for step in 1..=5 {
            log.write(step, &[("loss", step as f64)]).unwrap();
        }
        drop(log);
        let torn = lines(folder.path()) + "{\"step\":2,\"lo";
        fs::write(folder.path().join("metrics.jsonl"), torn).unwrap();
        Log::resume(folder.path(), 3).unwrap().write(4, &[("loss", 40.0)]).unwrap();
        assert_eq!(
            lines(folder.path()),
            "{\"step\":1,\"loss\":1.0}\n{\"step\":2,\"loss\":2.0}\n{\"step\":3,\"loss\":3.0}\n{\"step\":4,\"loss\":40.0}\n"
        );
    }

    #[test]
    fn a_broken_line_in_the_middle_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("metrics.jsonl"), "{\"step\":1}\noops\n{\"step\":2}\n").unwrap();
        let error = Log::resume(folder.path(), 2).err().unwrap();
        let text = crate::error::chain(&error);
        assert!(
            text.contains("metrics.jsonl: cannot resume") && text.contains("line 2 is no log line"),
            "{text}"
        );
    }
}
