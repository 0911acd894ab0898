//! Compiles the kernels as C++ for the host, and the emulator that runs them (kernels/emu).
//!
//! `GYRUS_SANITIZE` = `address` or `thread` instruments the kernels, which takes clang 19, as linker too:
//! `RUSTFLAGS="-C linker=clang-19"`. The emulator itself is never instrumented: it tells the sanitizer what a
//! kernel did. Tests find the choice in `env!("GYRUS_SANITIZE")`, empty for none.
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The emulator's sources, in kernels/emu.
const RUNTIME: [&str; 7] =
    ["abi.cpp", "async.cpp", "fibers.cpp", "launch.cpp", "tma.cpp", "warp.cpp", "wgmma.cpp"];

/// What a sanitizer changes.
struct Sanitizer {
    /// How the emulator knows of it.
    define: Option<&'static str>,
    /// For kernels, and the linker.
    flags: &'static [&'static str],
}

impl Sanitizer {
    fn named(name: &str) -> Self {
        match name {
            "" => Sanitizer { define: None, flags: &[] },
            "address" => Sanitizer {
                define: Some("EMU_ASAN"),
                // Undefined behaviour too.
                flags: &[
                    "-fsanitize=address,undefined",
                    "-fno-sanitize=vptr",
                    "-fno-sanitize-recover=undefined",
                ],
            },
            "thread" => Sanitizer { define: Some("EMU_TSAN"), flags: &["-fsanitize=thread"] },
            other => panic!("GYRUS_SANITIZE is `{other}`; it can be address, thread or empty"),
        }
    }
}

/// Links kernels/*.cu and tests/kernels/*.cu, as C++, into every binary. `cuda_include_dirs` are those of
/// CUDA's headers.
pub(crate) fn build(cuda_include_dirs: &[PathBuf]) {
    println!("cargo:rerun-if-changed=tests/kernels");
    println!("cargo:rerun-if-env-changed=GYRUS_SANITIZE");
    let name = env::var("GYRUS_SANITIZE").unwrap_or_default();
    println!("cargo:rustc-env=GYRUS_SANITIZE={name}");
    let sanitizer = Sanitizer::named(&name);

    let mut kernels = compiler(cuda_include_dirs, &sanitizer);
    kernels.files(sources("kernels")).files(sources("tests/kernels"));
    // -x: that .cu is C++ too.
    kernels.flag("-xc++").opt_level(if name.is_empty() { 2 } else { 1 }).debug(!name.is_empty());
    for flag in sanitizer.flags {
        kernels.flag(flag);
        println!("cargo:rustc-link-arg={flag}");
    }
    // Kernels are reached by name alone, so to the linker nobody uses them, nor the parts of the emulator
    // that they need.
    kernels.link_lib_modifier("+whole-archive").compile("gyrus_kernels");

    let mut runtime = compiler(cuda_include_dirs, &sanitizer);
    runtime.files(RUNTIME.map(|file| Path::new("kernels/emu").join(file)));
    runtime.link_lib_modifier("+whole-archive").opt_level(3).debug(false).compile("gyrus_emulator");
}

fn compiler(cuda_include_dirs: &[PathBuf], sanitizer: &Sanitizer) -> cc::Build {
    let mut compiler = cc::Build::new();
    compiler.cpp(true).std("c++20").warnings(false).include("kernels").include("kernels/emu");
    compiler.define("CUDA_EMU", None).flag("-march=x86-64-v3").flag("-Wno-psabi");
    // To nvcc, too, a pointer to one type may point to another: kernels read bf16 by fours and eights.
    compiler.flag("-fno-strict-aliasing");
    for dir in cuda_include_dirs {
        compiler.flag(format!("-isystem{}", dir.display()));
    }
    if let Some(define) = sanitizer.define {
        compiler.define(define, None).compiler("clang++-19");
    }
    compiler
}

fn sources(dir: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{dir}: {e}"));
    let paths = entries.map(|entry| entry.expect("folders of the crate can be read").path());
    let mut sources: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "cu")).collect();
    sources.sort();
    sources
}
