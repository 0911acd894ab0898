//! Many volumes: which scans a dataset has ([`scans`]), a synthetic dataset where none is at hand ([`phantom`]),
//! the memory-mapped cache of prepared volumes that training reads ([`Cache`]), subject-disjoint splits
//! ([`Split`]) and random changes of a volume while training ([`Augment`]).
mod augment;
mod bids;
mod cache;
mod error;
mod fingerprint;
mod index;
mod manifest;
pub mod phantom;
mod prepare;
mod ratings;
mod scan;
mod split;
mod table;

pub use augment::{Augment, Variant};
pub use cache::{Cache, Skipped};
pub use error::Error;
pub use fingerprint::{Fingerprint, Spread, Traits};
pub use index::{IndexRow, Measured};
pub use prepare::{Report, prepare, prepare_scan};
pub use ratings::Ratings;
pub use scan::{Scan, Sex, scans};
pub use split::{Member, Split};
