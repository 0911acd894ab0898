//! The built program, run as a user runs it.
use assert_cmd::{Command, assert::Assert};
use std::time::Duration;
use tempfile::TempDir;

/// Runs `line`, split at blanks, in `folder`.
pub(crate) fn gyrus(folder: &TempDir, line: &str) -> Assert {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gyrus"));
    command.current_dir(folder).args(line.split_whitespace()).timeout(Duration::from_secs(300)).assert()
}
