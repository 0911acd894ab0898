//! The compiled kernels, as build.rs left them: `IMAGES` (file of kernels/ and its fatbin; none when no nvcc was
//! found), `ARCHITECTURES` they are for, `SEARCHED` (where nvcc was looked for) and `REPORT` (the compiler's line on
//! each kernel: registers, shared memory, spills).
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
