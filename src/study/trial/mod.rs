//! A study of what pretraining on scans of one quality or another is worth: what is asked ([`design`]), the ways to
//! pretrain that it compares ([`arm`]), who is drawn into each ([`pool`]), its trainings ([`setup`], [`mod@unit`],
//! [`schedule`]) and what came of them ([`record`], [`collect`](fn@collect), [`results`], [`tables`]).
mod answer;
pub mod arm;
mod collect;
pub mod design;
mod examples;
mod knowledge;
pub mod pool;
pub mod record;
pub mod results;
pub mod schedule;
pub mod setup;
pub mod tables;
pub mod unit;

pub use collect::collect;
