//! What is done to a recorded tape: it is differentiated, its parameters are laid out in one flat range, its
//! temporaries are planned into one arena, and a [`Machine`] replays it: [`Cpu`] on the host, [`Cuda`] on a device.
//! An optimiser is recorded behind a loss. Arrays with names come and go as safetensors.
pub mod arrays;
pub mod autograd;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod feed;
pub mod flat;
pub mod machine;
pub mod optimise;
pub mod plan;
pub mod trace;

pub use arrays::{Array, Arrays};
pub use autograd::{Gradients, backward, backward_recomputing};
pub use cpu::Cpu;
pub use cuda::Cuda;
pub use device::Device;
pub use feed::Volumes;
pub use flat::{Flat, flatten};
pub use machine::Machine;
pub use optimise::{Optimiser, Recipe};
pub use trace::{Traced, trace};
