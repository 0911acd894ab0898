//! Mechanism only: host memory, arithmetic, random numbers, devices and whole files. Nothing here knows an operation.
pub mod device;
pub mod philox;
pub mod whole_file;
