//! The commands, a file each; their doc comments are the help.
pub mod inspect;
pub mod phantom;
pub mod prepare;
