//! 3-D masked autoencoders for brain MRI, from NIfTI files to brain age.
//!
//! The modules stand in floors, lowest first; each uses only floors below its own
//! (`tests/floors.rs` reads this list).

// What every floor says when something goes wrong.
pub mod error;

// How every floor writes a file.
pub mod file;

// Mechanism: memory, arithmetic and random numbers. It knows no operation.
pub mod machine;

// One image.
pub mod image;

// Names for values, what an operation is, and a list of them.
pub mod tape;

// The operations.
pub mod ops;

// What is done to a recorded tape.
pub mod program;

// Many volumes; the models.
pub mod data;
pub mod model;

// Every operation and tiny models, at the shapes they are checked and timed at; training.
pub mod cases;
pub mod train;

// What trained models are worth.
pub mod study;

// Pictures and pages.
pub mod report;

// The commands.
pub mod cli;
