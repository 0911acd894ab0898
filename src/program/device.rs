//! Which machine a program runs on.
use super::{Cpu, Cuda, Machine};
use crate::machine::{Driver, cuda};
use crate::tape::{Tape, Tensor};
use std::rc::Rc;

/// What computes.
#[derive(Clone)]
pub enum Device {
    /// The host, in `f32`.
    Cpu,
    /// A CUDA device.
    Cuda(Rc<dyn Driver>),
}

impl Device {
    /// A machine with the program `tape`; temporaries in `keep` can be read after a run.
    ///
    /// # Errors
    /// An operation without kernels, or too little memory on the device.
    pub fn machine(&self, tape: Tape, keep: &[Tensor]) -> cuda::Result<Box<dyn Machine<Real = f32>>> {
        Ok(match self {
            Device::Cpu => Box::new(Cpu::<f32>::new(tape, keep)),
            Device::Cuda(driver) => Box::new(Cuda::new(Rc::clone(driver), tape, keep)?),
        })
    }
}
