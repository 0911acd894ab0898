//! Compiles the kernels for the host.
use std::path::PathBuf;

pub(crate) fn build(_: &[PathBuf]) {
    panic!("the emulator is not here yet");
}
