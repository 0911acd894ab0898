//! `--device`: which machine computes.
use clap::ValueEnum;

/// The machine that computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The best there is.
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl Device {
    /// Refuses a device that this build cannot compute on.
    pub(super) fn check(self) -> Result<(), &'static str> {
        match self {
            Device::Auto | Device::Cpu => Ok(()),
            Device::Cuda => Err("--device cuda: this build has no CUDA machine; use --device cpu"),
        }
    }
}
