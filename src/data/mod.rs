//! Many volumes: which scans a dataset has ([`scans`]), a synthetic dataset where none is at hand ([`phantom`]),
//! the memory-mapped cache of prepared volumes that training reads ([`Cache`]), subject-disjoint splits
//! ([`Split`]) and random changes of a volume while training ([`Augment`]).
mod augment;
mod bids;
mod cache;
mod companion;
mod error;
mod fingerprint;
mod fomo;
mod index;
mod manifest;
mod modality;
mod people;
pub mod phantom;
mod prepare;
mod ratings;
mod scan;
mod split;
mod table;
mod visit;

pub use augment::{Augment, Variant};
pub use cache::{Cache, Skipped};
pub use error::Error;
pub use fingerprint::{Fingerprint, Spread, Traits};
pub use index::{IndexRow, Measured, Placed, Reference};
pub use modality::UNKNOWN;
pub use prepare::{Report, Wanted, prepare, prepare_scan, prepare_wanted};
pub use ratings::Ratings;
pub use scan::{Found, Scan, Sex, scans};
pub use split::{Member, Split};
pub use visit::Visit;
