//! Mechanism only: host memory, arithmetic and random numbers. Nothing here knows an operation.
pub mod mapped;
pub mod philox;
