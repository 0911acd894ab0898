//! The models, recorded on a tape: vision transformer blocks, the masked autoencoder on volumes, the brain-age
//! model; their presets, first weights and the names their parameters have in files.
pub mod brain_age;
pub mod init;
pub mod mae;
pub mod preset;
pub mod vit;

pub use mae::Mae;
pub use preset::Preset;
pub use vit::{Encoder, Shape, Visible};
