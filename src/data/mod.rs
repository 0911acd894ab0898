//! Many volumes: which scans a dataset has ([`scans`]), a synthetic dataset where none is at hand ([`phantom`]),
//! the memory-mapped cache of prepared volumes that training reads ([`Cache`]), subject-disjoint splits
//! ([`split`]) and random changes of a volume while training ([`augment`]).
mod atomic;
pub mod augment;
mod bids;
mod error;
mod manifest;
mod noise;
pub mod phantom;
mod scan;
pub mod split;
mod table;

pub use augment::{Augment, augment};
pub use error::Error;
pub use scan::{Scan, Sex, scans};
pub use split::{Member, Split};
