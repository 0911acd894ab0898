//! Training: settings, the loop that pretraining and fine-tuning share, checkpoints and logs; and what a trained
//! model is asked for: ages, features, reconstructions.
pub mod checkpoint;
pub mod config;
mod error;
mod events;
pub mod finetune;
pub mod infer;
pub mod log;
pub mod pretrain;
pub mod readout;
pub mod reconstruct;
pub mod samples;
pub mod schedule;
pub mod session;
pub mod settings;
mod variants;

pub use checkpoint::{Card, Checkpoint};
pub use error::Error;
pub use session::Run;
