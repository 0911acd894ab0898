//! What surrounds a training run: its settings, its schedule and its log.
mod events;
pub mod log;
pub mod schedule;
pub mod settings;
