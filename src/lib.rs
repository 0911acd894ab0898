//! 3-D masked autoencoders for brain MRI, from NIfTI files to brain age.
//!
//! The modules stand in floors, lowest first; each uses only floors below its own
//! (`tests/floors.rs` reads this list).

// What every floor says when something goes wrong.
pub mod error;

// Mechanism: memory, arithmetic and random numbers; and one image. They know no operation.
pub mod image;
pub mod machine;

// The commands.
pub mod cli;
