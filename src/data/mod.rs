//! Many volumes: which scans a dataset has ([`scans`]) and what is doubtful about it ([`Survey`]), whether two share
//! anybody ([`Leakage`]), a synthetic dataset where none is at hand ([`phantom`]),
//! the memory-mapped cache of prepared volumes that training reads ([`Cache`]), subject-disjoint splits
//! ([`Split`]) and random changes of a volume while training ([`Augment`]).
mod assignment;
mod augment;
mod bids;
mod cache;
mod companion;
mod contents;
mod dataset;
mod derived;
mod error;
mod fingerprint;
mod fomo;
mod index;
mod leakage;
mod manifest;
mod modality;
mod people;
mod persons;
pub mod phantom;
mod prepare;
mod ratings;
mod scan;
mod split;
mod survey;
mod table;
mod visit;

pub use assignment::{Assignment, Parts, TEST, TRAIN, VALIDATION};
pub use augment::{Augment, Variant};
pub use bids::stem;
pub use cache::{Cache, Skipped};
pub use contents::Contents;
pub use dataset::{Dataset, Seen, Wanted};
pub use derived::{Changed, DISTORTIONS, derive};
pub use error::Error;
pub use fingerprint::{Fingerprint, Spread, Traits};
pub use index::{IndexRow, Measured, Placed, Reference};
pub use leakage::{Identities, Leakage};
pub use modality::UNKNOWN;
pub use persons::Persons;
pub use prepare::{Report, prepare, prepare_scan, prepare_wanted};
pub use ratings::Ratings;
pub use scan::{Found, Scan, Sex, all_scans, is_nifti, scans};
pub use split::{Member, Split};
pub use survey::{Range, Survey};
pub use visit::{T1W, Visit};
