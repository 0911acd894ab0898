//! Compiles kernels/*.cu: for GPUs, where nvcc is found, and, with the feature `emulator`, for the host.
#[cfg(feature = "emulator")]
#[path = "build/emulator.rs"]
mod emulator;
#[path = "build/nvcc.rs"]
mod nvcc;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=kernels");
    let found = nvcc::find();
    nvcc::compile(&found);
    #[cfg(feature = "emulator")]
    emulator::build(&found.include_dirs());
}
