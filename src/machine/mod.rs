//! Mechanism only: memory, mapped files, arithmetic, matrix products, random numbers, and CUDA devices with what
//! runs their kernels. Nothing here knows an operation; operations (`ops/`) are written in terms of what is here.
pub mod cholesky;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod driver;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod gemm;
pub mod gpu;
pub mod kernels;
pub mod mapped;
pub mod philox;
pub mod real;
pub mod ridge;
pub mod scratch;

pub use cpu::Mem;
pub use driver::{Driver, Memory};
#[cfg(feature = "emulator")]
pub use emulator::Emulator;
pub use gemm::{Into, Mat, MatMut, Threads, for_each_head, for_each_tile, gemm, spread};
pub use gpu::Gpu;
pub use real::Real;
pub use scratch::scratch;
