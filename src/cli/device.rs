//! `--device`: which machine computes.
use crate::machine::{Driver, Gpu, cuda, device};
use crate::program;
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;

/// The machine that computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The best there is.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by the driver's number.
    Cuda(usize),
    /// The kernels on the host, slowly and strictly.
    #[cfg(feature = "emulator")]
    Emulator,
}

impl FromStr for Device {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Device::Auto),
            None if text == "cpu" => Ok(Device::Cpu),
            None if text == "cuda" => Ok(Device::Cuda(0)),
            #[cfg(feature = "emulator")]
            None if text == "emulator" => Ok(Device::Emulator),
            Some(("cuda", number)) => number
                .parse()
                .map(Device::Cuda)
                .map_err(|_| "the number after `cuda:` is that of a device, from 0"),
            _ => Err("it can be auto, cpu, cuda or cuda:N"),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
            #[cfg(feature = "emulator")]
            Device::Emulator => f.write_str("emulator"),
        }
    }
}

impl Device {
    /// Opens the machine; `auto` takes a GPU where one can be used, and says so where one is there and cannot.
    ///
    /// # Errors
    /// A device that was asked for and cannot be used.
    pub fn open(self) -> Result<program::Device, cuda::Error> {
        let gpu = |number| -> Result<_, cuda::Error> { Ok(cuda_device(Rc::new(Gpu::open(number)?))) };
        match self {
            Device::Cpu => Ok(program::Device::Cpu),
            Device::Cuda(number) => gpu(number),
            #[cfg(feature = "emulator")]
            Device::Emulator => Ok(cuda_device(Rc::new(crate::machine::Emulator::new(Default::default())))),
            Device::Auto if device::cuda().is_ok_and(|cuda| !cuda.devices.is_empty()) => {
                gpu(0).or_else(|error| {
                    eprintln!("the GPU is not used: {error}");
                    Ok(program::Device::Cpu)
                })
            }
            Device::Auto => Ok(program::Device::Cpu),
        }
    }
}

fn cuda_device(driver: Rc<dyn Driver>) -> program::Device {
    program::Device::Cuda(driver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert!("gpu".parse::<Device>().is_err() && "cuda:x".parse::<Device>().is_err());
    }

    #[test]
    fn a_machine_without_a_gpu_computes_on_the_cpu() {
        if device::cuda().is_err() {
            assert!(matches!(Device::Auto.open(), Ok(program::Device::Cpu)));
            assert!(Device::Cuda(0).open().is_err());
        }
    }
}
