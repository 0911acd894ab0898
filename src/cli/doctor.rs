//! `gyrus doctor`: what this machine offers.
use std::{collections::BTreeMap, error::Error, fs, process::ExitCode};

use serde::Serialize;

use crate::machine::device::{self, Cuda};
use crate::machine::kernels;

/// Show what this machine offers: processor, memory, GPUs and kernels.
///
/// Example: gyrus doctor
///
/// Example: gyrus doctor --kernels
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
    /// List the compiled kernels: registers and shared memory that each takes, and bytes it spills.
    #[arg(long)]
    pub kernels: bool,
}

#[derive(Serialize)]
struct Findings {
    gyrus: &'static str,
    processor: Option<String>,
    cores: usize,
    /// Instruction sets that the CPU's arithmetic picks from at run time, and whether they are here.
    simd: BTreeMap<&'static str, bool>,
    /// Bytes.
    memory: Option<u64>,
    threads: usize,
    cuda: Option<Cuda>,
    /// Why there is no GPU.
    no_cuda: Option<String>,
    /// What the kernels of this build were compiled for; nothing where it has none.
    kernels: Option<&'static str>,
}

/// Runs the command; a machine without a GPU is no error.
///
/// # Errors
/// None today; the result is that of every command.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    if args.kernels {
        print!("{}", kernel_table(kernels::REPORT));
        return Ok(ExitCode::SUCCESS);
    }
    let found = look();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        print!("{}", render(&found));
    }
    Ok(ExitCode::SUCCESS)
}

fn look() -> Findings {
    let (cuda, no_cuda) = match device::cuda() {
        Ok(cuda) => (Some(cuda), None),
        Err(why) => (None, Some(why.to_string())),
    };
    Findings {
        gyrus: env!("CARGO_PKG_VERSION"),
        processor: proc_value("/proc/cpuinfo", "model name"),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        simd: simd(),
        memory: proc_value("/proc/meminfo", "MemTotal")
            .and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok())
            .map(|kib| kib * 1024),
        threads: rayon::current_num_threads(),
        cuda,
        no_cuda,
        kernels: (!kernels::IMAGES.is_empty()).then_some(kernels::ARCHITECTURES),
    }
}

/// The compiler's report on each kernel, a line each.
fn kernel_table(report: &str) -> String {
    let mut table = format!(
        "{:36} {:8} {:>9} {:>15} {:>13}\n",
        "kernel", "for", "registers", "static shared B", "spilled B"
    );
    for line in report.lines() {
        let mut cells = line.split('\t');
        let mut cell = || cells.next().unwrap_or_default();
        let (kernel, arch, registers, shared, spilled) = (cell(), cell(), cell(), cell(), cell());
        table += &format!("{kernel:36} {arch:8} {registers:>9} {shared:>15} {spilled:>13}\n");
    }
    table
}

/// The value of `key` in a Linux list of `key : value` lines; nothing on other systems.
fn proc_value(file: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let (_, value) =
        text.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.trim() == key)?;
    Some(value.trim().to_owned())
}

#[cfg(target_arch = "x86_64")]
fn simd() -> BTreeMap<&'static str, bool> {
    BTreeMap::from([
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ])
}

#[cfg(not(target_arch = "x86_64"))]
fn simd() -> BTreeMap<&'static str, bool> {
    BTreeMap::new()
}

fn render(found: &Findings) -> String {
    let unknown = || "unknown".to_owned();
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64);
    let simd: Vec<String> = found
        .simd
        .iter()
        .map(|(name, here)| if *here { (*name).into() } else { format!("no {name}") })
        .collect();
    let mut lines = vec![
        ("gyrus", found.gyrus.to_owned()),
        ("processor", found.processor.clone().unwrap_or_else(unknown)),
        (
            "cores",
            format!("{} ({} worker threads; set RAYON_NUM_THREADS to change)", found.cores, found.threads),
        ),
        ("SIMD", simd.join(", ")),
        ("memory", found.memory.map_or_else(unknown, gib)),
    ];
    match (&found.cuda, &found.no_cuda) {
        (Some(cuda), _) => {
            lines.push(("CUDA", format!("driver serves up to {}", cuda.version)));
            for gpu in &cuda.devices {
                let text = format!(
                    "{}, compute capability {}, {}",
                    gpu.name,
                    gpu.compute_capability,
                    gib(gpu.memory)
                );
                lines.push(("GPU", text));
            }
        }
        (None, why) => lines.push(("GPU", format!("none: {}", why.as_deref().unwrap_or_default()))),
    }
    let kernels = found.kernels.map_or_else(
        || format!("none: nvcc was not found when this was built ({})", kernels::SEARCHED),
        |built| format!("compiled for {built}"),
    );
    lines.push(("kernels", kernels));
    lines.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_listed() {
        let table = kernel_table("layer_norm\tsm_80\t40\t128\t0\n");
        assert!(table.lines().nth(1).is_some_and(|line| line.ends_with("40             128             0")));
    }

    #[test]
    fn every_machine_gets_an_answer() {
        let found = look();
        assert!(found.cores > 0 && found.cuda.is_some() != found.no_cuda.is_some());
        assert_eq!(render(&found).contains("kernels     none"), kernels::IMAGES.is_empty());
    }
}
