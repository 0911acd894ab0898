//! The commands, a file each; their doc comments are the help.
pub mod bench;
pub mod doctor;
pub mod evaluate;
