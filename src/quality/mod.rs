//! The quality of scans: making it worse in known ways ([`distort`]).
pub mod distort;
