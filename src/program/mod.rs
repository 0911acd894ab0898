//! What is done to a recorded tape: it is differentiated, its parameters are laid out in one flat range, its
//! temporaries are planned into one arena, and it is replayed; an optimiser is recorded behind a loss. Arrays with names come and go as safetensors.
pub mod arrays;
pub mod autograd;
pub mod flat;
pub mod optimise;
pub mod plan;
pub mod run;

pub use arrays::{Array, Arrays};
pub use autograd::{Gradients, backward};
pub use flat::{Flat, flatten};
pub use optimise::{Optimiser, Recipe};
pub use run::Cpu;
