//! The commands, a file each; doc comments are their help.
pub mod inspect;
