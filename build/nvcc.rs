//! kernels/*.cu to fatbins, one each, and a Rust file that embeds them.
//!
//! `GYRUS_CUDA` = `auto` (the default), `require` (no nvcc is an error) or `off`; `GYRUS_CUDA_ARCHS` = what to compile
//! for, "80;90a" by default; PTX of the first is added for cards to come. Files that end in `_sm90.cu` use
//! instructions of sm_90a and are compiled for that alone.
use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What ptxas says of a kernel that loses its speed and still compiles, with exit code 0.
const LOSSES: [&str; 3] = ["Potential Performance Loss", "(C7517)", "(C7519)"];

/// Where nvcc was looked for, and where it is.
pub(crate) struct Found {
    nvcc: Option<PathBuf>,
    searched: Vec<String>,
}

impl Found {
    /// Where its headers are.
    #[cfg(feature = "emulator")]
    pub(crate) fn include_dirs(&self) -> Vec<PathBuf> {
        let root = self.nvcc.as_ref().and_then(|nvcc| nvcc.parent()?.parent());
        let root = root.expect("the emulator needs CUDA's headers: pip install --no-deps --target .cuda -r requirements-cuda.txt");
        vec![root.join("include"), root.join("include/cccl")]
    }
}

/// Looks for nvcc: named by a variable, on the path, in the usual folders, among Python's packages.
pub(crate) fn find() -> Found {
    let variables =
        ["GYRUS_CUDA", "GYRUS_CUDA_ARCHS", "GYRUS_NVCC", "NVCC", "CUDA_HOME", "CUDA_PATH", "PATH"];
    for name in variables.iter().filter(|name| **name != "PATH") {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let mut searched = Vec::new();
    let mut candidates: Vec<(String, PathBuf)> = Vec::new();
    for name in ["GYRUS_NVCC", "NVCC"] {
        match env::var_os(name) {
            Some(path) => candidates.push((format!("${name}"), path.into())),
            None => searched.push(format!("${name} (not set)")),
        }
    }
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        match env::var_os(name) {
            Some(root) => candidates.push((format!("${name}"), Path::new(&root).join("bin/nvcc"))),
            None => searched.push(format!("${name} (not set)")),
        }
    }
    let path = env::var_os("PATH").unwrap_or_default();
    candidates.extend(env::split_paths(&path).map(|dir| ("$PATH".to_owned(), dir.join("nvcc"))));
    let crate_root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    candidates.push((".cuda".to_owned(), crate_root.join(".cuda/nvidia/cu13/bin/nvcc")));
    for root in ["/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda"] {
        candidates.push((root.to_owned(), Path::new(root).join("bin/nvcc")));
    }
    for name in ["python3", "python"] {
        let ask =
            "import site, sys; print('\\n'.join(site.getsitepackages() + [site.getusersitepackages()]))";
        let Ok(answer) = Command::new(name).args(["-c", ask]).output() else { continue };
        for dir in String::from_utf8_lossy(&answer.stdout).lines() {
            candidates.push(("Python's packages".to_owned(), Path::new(dir).join("nvidia/cu13/bin/nvcc")));
        }
    }
    let nvcc = candidates.iter().find(|(_, path)| path.is_file()).map(|(_, path)| path.clone());
    searched.extend(candidates.into_iter().map(|(place, _)| place));
    let mut seen = BTreeSet::new();
    searched.retain(|place| seen.insert(place.clone()));
    Found { nvcc, searched }
}

/// One kernel file compiled.
struct Compiled {
    stem: String,
    fatbin: PathBuf,
    /// The lines that ptxas prints of each kernel.
    report: String,
}

/// Compiles all kernels, or none where there is no nvcc, and writes the Rust file that embeds them.
pub(crate) fn compile(found: &Found) {
    let mode = env::var("GYRUS_CUDA").unwrap_or_else(|_| "auto".to_owned());
    let off = mode == "off" || env::var_os("DOCS_RS").is_some();
    assert!(
        ["auto", "require", "off"].contains(&mode.as_str()),
        "GYRUS_CUDA is `{mode}`; it can be auto, require or off"
    );
    let archs = env::var("GYRUS_CUDA_ARCHS").unwrap_or_else(|_| "80;90a".to_owned());
    let archs: Vec<&str> = archs.split([';', ',', ' ']).filter(|a| !a.is_empty()).collect();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let compiled = match &found.nvcc {
        Some(nvcc) if !off => compile_all(nvcc, &archs, &out),
        _ => {
            let message = "no nvcc found: built without GPU kernels (GYRUS_CUDA=require makes this an error)";
            assert!(mode != "require", "{message}; searched {}", found.searched.join(", "));
            if !off {
                println!("cargo:warning={message}");
            }
            Vec::new()
        }
    };
    let mut rust = String::new();
    rust += "/// The fatbin of each file of kernels/.\npub const IMAGES: &[(&str, &[u8])] = &[\n";
    for Compiled { stem, fatbin, .. } in &compiled {
        writeln!(rust, "    ({stem:?}, include_bytes!({fatbin:?})),").expect("strings take all");
    }
    let report: String = compiled.iter().map(|c| c.report.as_str()).collect();
    writeln!(
        rust,
        "];\n/// What they were compiled for.\npub const ARCHITECTURES: &str = {:?};\n\
         /// Where nvcc was looked for.\npub const SEARCHED: &str = {:?};\n\
         /// Kernel, architecture, registers, bytes of static shared memory, bytes spilled: a line each, tabs between.\n\
         pub const REPORT: &str = {report:?};",
        archs.iter().map(|a| format!("sm_{a}")).collect::<Vec<_>>().join(", "),
        found.searched.join(", "),
    )
    .expect("strings take all");
    fs::write(out.join("kernels.rs"), rust).expect("OUT_DIR can be written");
}

/// As many at a time as cargo allows jobs.
fn compile_all(nvcc: &Path, archs: &[&str], out: &Path) -> Vec<Compiled> {
    let mut sources: Vec<PathBuf> = fs::read_dir("kernels")
        .expect("the crate has kernels/")
        .map(|entry| entry.expect("kernels/ can be read").path())
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort();
    let version = Command::new(nvcc).arg("--version").output();
    let version = version.unwrap_or_else(|e| panic!("cannot run {}: {e}", nvcc.display())).stdout;
    let version = String::from_utf8_lossy(&version).into_owned();
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_usize);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(sources.len()) {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let compiled = compile_one(nvcc, &version, source, archs, out);
                    done.lock().expect("no other thread has panicked").push(compiled);
                }
            });
        }
    });
    let mut compiled = done.into_inner().expect("no thread has panicked");
    compiled.sort_by(|a: &Compiled, b| a.stem.cmp(&b.stem));
    compiled
}

fn compile_one(nvcc: &Path, version: &str, source: &Path, archs: &[&str], out: &Path) -> Compiled {
    let stem = source.file_stem().expect("a file has a name").to_string_lossy().into_owned();
    let (fatbin, log) = (out.join(format!("{stem}.fatbin")), out.join(format!("{stem}.log")));
    let (headers, stamp) = (out.join(format!("{stem}.d")), out.join(format!("{stem}.stamp")));
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-O3", "-std=c++17", "-lineinfo", "-Ikernels"]);
    command.args(["-Xptxas", "-v,--warn-on-spills,--warn-on-local-memory-usage,-Werror"]);
    if stem.ends_with("_sm90") {
        command.args(["-gencode", "arch=compute_90a,code=sm_90a"]);
    } else {
        for arch in archs {
            command.args(["-gencode", &format!("arch=compute_{arch},code=sm_{arch}")]);
        }
        let lowest = archs.first().expect("GYRUS_CUDA_ARCHS names an architecture");
        command.args(["-gencode", &format!("arch=compute_{lowest},code=compute_{lowest}")]);
    }
    command.arg("-MD").arg("-MF").arg(&headers).arg("-o").arg(&fatbin).arg(source);

    let how = format!("{version}{command:?}");
    if !up_to_date(&fatbin, &headers, &stamp, &how) {
        let answer = command.output().unwrap_or_else(|e| panic!("cannot run {}: {e}", nvcc.display()));
        let text = String::from_utf8_lossy(&answer.stderr).into_owned();
        let loss = text.lines().find(|line| LOSSES.iter().any(|loss| line.contains(loss)));
        let wrong = if answer.status.success() { loss.map(str::to_owned) } else { Some(text.clone()) };
        if let Some(wrong) = wrong {
            let _ = fs::remove_file(&stamp);
            panic!("{}:\n{command:?}\n{wrong}", source.display());
        }
        fs::write(&log, text).and_then(|()| fs::write(&stamp, &how)).expect("OUT_DIR can be written");
    }
    for header in dependencies(&headers).iter().filter(|path| path.is_relative()) {
        println!("cargo:rerun-if-changed={}", header.display());
    }
    let report = report(&fs::read_to_string(&log).unwrap_or_default());
    Compiled { stem, fatbin, report }
}

/// Whether `fatbin` was made by the same command, after the last change of everything it was made from.
fn up_to_date(fatbin: &Path, headers: &Path, stamp: &Path, how: &str) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    let Some(made) = time(fatbin) else { return false };
    let sources = dependencies(headers);
    fs::read_to_string(stamp).is_ok_and(|text| text == how)
        && !sources.is_empty()
        && sources.iter().all(|source| time(source).is_some_and(|changed| changed < made))
}

/// The files that a rule written by `nvcc -MD` names.
fn dependencies(rule: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(rule).unwrap_or_default();
    let (_, files) = text.split_once(':').unwrap_or_default();
    files.split_whitespace().filter(|word| *word != "\\").map(PathBuf::from).collect()
}

/// The lines of `ptxas -v` as a table.
fn report(log: &str) -> String {
    let mut table = String::new();
    let (mut kernel, mut arch, mut spilled) = ("", "", 0);
    let number_before = |line: &str, what: &str| -> u32 {
        let before = line.split(what).next().filter(|before| before.len() < line.len());
        before.and_then(|b| b.split_whitespace().next_back()?.parse().ok()).unwrap_or(0)
    };
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut parts = rest.split('\'');
            (kernel, arch) = (parts.next().unwrap_or(""), parts.nth(1).unwrap_or(""));
        } else if line.contains("bytes spill stores") {
            spilled = number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
        } else if line.contains("Used ") && line.contains(" registers") {
            let (registers, shared) = (number_before(line, " registers"), number_before(line, " bytes smem"));
            writeln!(table, "{kernel}\t{arch}\t{registers}\t{shared}\t{spilled}").expect("strings take all");
        }
    }
    table
}
