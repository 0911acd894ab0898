//! Mechanism only: host memory, mapped files, arithmetic, matrix products, random numbers and
//! devices. Nothing here knows an
//! operation; operations (`ops/`) are written in terms of what is here.
pub mod cpu;
pub mod device;
pub mod gemm;
pub mod mapped;
pub mod philox;
pub mod real;
pub mod scratch;

pub use cpu::Mem;
pub use gemm::{Into, Mat, MatMut, Threads, for_each_head, for_each_tile, gemm, spread};
pub use real::Real;
pub use scratch::scratch;
