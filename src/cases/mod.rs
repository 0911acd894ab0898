//! The one table of cases, and what is checked with it: gradients against central differences, `f32` against
//! `f64`, kernels against definitions, faults planted on purpose, and whole
//! training steps against another implementation's.
pub mod case;
mod composed;
pub mod conformance;
pub mod controls;
pub mod gradcheck;
mod layers;
pub mod parity;
pub mod plain_attention;
pub mod reference;
pub mod table;
pub mod timed;

pub use case::{Case, Outputs, Recorder};
pub use conformance::{Conformed, conformance};
pub use gradcheck::{Outcome, check};
pub use plain_attention::plain_attention;
pub use table::table;
pub use timed::{Mode, TrainingStep};
