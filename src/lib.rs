//! 3-D masked autoencoders for brain MRI, from NIfTI files to brain age.
//!
//! The `gyrus` command is the way most people use this (`gyrus --help`, or `gyrus demo` with no data at hand). As a
//! library it is three things:
//!
//! **An engine for numerical programs.** There is one notion, the operation ([`tape::Op`]), and four steps: model code
//! *records* operations on a [`tape::Tape`]; [`program::backward`] *differentiates* by recording more of them; a
//! [`program::plan`] gives every temporary a place in one arena; a machine ([`program::Cpu`], [`program::Cuda`])
//! *replays* the list, as often as one likes, allocating no tensors. The loss, its gradients, clipping and AdamW are one program.
//!
//! ```
//! use gyrus::{ops, program::{Cpu, backward}, tape::Tape};
//!
//! let mut t = Tape::default();
//! let (x, w, b) = (t.input(&[2, 3]), t.param("w", &[1, 3]), t.param("b", &[1]));
//! let y = ops::linear(&mut t, x, w, b); // y = x wᵀ + b, [2, 1]
//! let dy = t.input(&[2, 1]);
//! let gradients = backward(&mut t, &[(y, dy)]);
//!
//! let mut cpu = Cpu::<f64>::new(t, &[y, gradients[&w]]);
//! cpu.write(x, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
//! cpu.write(w, &[1.0, 0.0, -1.0]);
//! cpu.write(dy, &[1.0, 10.0]);
//! cpu.run();
//! assert_eq!(cpu.read(y), [-2.0, -2.0]);
//! assert_eq!(cpu.read(gradients[&w]), [41.0, 52.0, 63.0]);
//! ```
//!
//! Every operation of [`ops`] is defined once, generically, and computed in `f64` (the reference its gradient is
//! checked in) and in `f32` (the product); its kernels compute it on a GPU, in bf16 with sums in f32. [`cases`] has the
//! one table of checks: gradients against differences, `f32` against `f64`, kernels against `f64`, whole training steps
//! against another implementation. `examples/new_operation.rs` adds an operation.
//!
//! **The way of a scan.** [`image`] reads NIfTI and prepares one scan; [`data`] finds the scans of a dataset, prepares
//! them into a memory-mapped cache, splits them by subject and changes them at random while training; [`quality`] measures
//! and grades scans, and makes them worse by known amounts.
//!
//! **Models and what they are worth.** [`model`] records the masked autoencoder and the brain-age model, with the
//! parameter names of facebookresearch/mae and timm; [`train`] trains, stores and uses them; [`study`] measures ages
//! with intervals over subjects; [`report`] draws. `examples/mae_step.rs` trains one volume by hand.
//!
//! Tensors are `[outermost, .., innermost]`, volumes `[B, C, X, Y, Z]` with x to the right, y to the front and z up,
//! ages in years. A shape that does not fit is a bug of the caller and panics where it is recorded; a file, a setting
//! or a device that does not fit is an error that names it.
//!
//! The modules stand in floors, lowest first; each uses only floors below its own (`tests/floors.rs` reads this list).

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
pub mod quality;

// Every operation and tiny models, at the shapes they are checked and timed at; training.
pub mod cases;
pub mod train;

// What trained models are worth.
pub mod study;

// Pictures and pages.
pub mod report;

// The commands.
pub mod cli;
