//! What the compiler made of the kernels, read from the code itself: a kernel that is as it was meant has these
//! instructions, and one that has lost its speed (products on the wrong units, loads past the copy engines, variables
//! in memory) still computes the right numbers. Needs cuobjdump, which is among the wheels of requirements-cuda.txt.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use gyrus::machine::kernels::{ARCHITECTURES, IMAGES, REPORT};
use gyrus::ops;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

/// Of kernels of a file: opcodes that each has, and that none has.
struct Expected {
    file: &'static str,
    kernels: &'static [&'static str],
    has: &'static [&'static str],
    lacks: &'static [&'static str],
}

const PRODUCTS: [&str; 4] = ["HMMA.16816.F32.BF16", "LDSM.16.M", "LDGSTS", "STG.E.128"];
const HOPPER: [&str; 6] =
    ["HGMMA.64x", "UTMALDG.2D.MULTICAST", "UCGABAR_ARV", "SYNCS.PHASECHK", "WARPGROUP.DEPBAR", "USETMAXREG"];

const HOPPER_PRODUCTS: [&str; 12] = [
    "linear_residual_wide",
    "linear_residual_pingpong",
    "linear_input_grad_gelu_wide",
    "linear_input_grad_gelu_pingpong",
    "linear_gelu_wide",
    "linear_gelu_pingpong",
    "linear_wide",
    "linear_pingpong",
    "linear_input_grad_wide",
    "linear_input_grad_pingpong",
    "linear_weight_grad_wide",
    "linear_weight_grad_narrow",
];

const EXPECTED: [Expected; 12] = [
    Expected {
        file: "linear",
        kernels: &["linear", "linear_gelu", "linear_residual", "linear_input_grad", "linear_weight_grad"],
        has: &PRODUCTS,
        lacks: &[],
    },
    // No loads by threads, no products of single warps.
    Expected { file: "linear_sm90", kernels: &HOPPER_PRODUCTS, has: &HOPPER, lacks: &["LDGSTS", " HMMA"] },
    Expected {
        file: "linear_sm90",
        kernels: HOPPER_PRODUCTS.split_at(10).0,
        has: &["STSM.16.M88.4", "UTMASTG.3D"],
        lacks: &["STG.E"],
    },
    // What is needed beside the operands comes by TMA too; of a GELU it is what was left before.
    Expected {
        file: "linear_sm90",
        kernels: HOPPER_PRODUCTS.split_at(4).0,
        has: &["UTMALDG.3D", "LDSM.16.M88.4"],
        lacks: &[],
    },
    Expected { file: "linear_sm90", kernels: HOPPER_PRODUCTS.split_at(10).1, has: &["STG.E.64"], lacks: &[] },
    Expected {
        file: "attention_sm90",
        kernels: &["attention_long"],
        has: &["HGMMA.64x64x16", "UTMALDG.3D", "MUFU.EX2", "USETMAXREG", "STSM.16.M88.4", "UTMASTG.3D"],
        lacks: &["LDGSTS", " HMMA"],
    },
    Expected {
        file: "attention_grad_sm90",
        kernels: &["attention_long_grad_q", "attention_long_grad_kv"],
        has: &["HGMMA.64x64x16", "UTMALDG.3D", "MUFU.EX2", "USETMAXREG", "STSM.16.M88.4", "UTMASTG.3D"],
        lacks: &["LDGSTS", " HMMA"],
    },
    Expected {
        file: "attention_short_sm90",
        kernels: &["attention_short", "attention_short_grad"],
        has: &["HMMA.16816.F32.BF16", "LDSM.16.M", "UTMALDG.3D", "MUFU.EX2", "STSM.16.M88.4", "UTMASTG.3D"],
        lacks: &["LDGSTS", "LDG.E.128", "STG.E.128"],
    },
    Expected {
        file: "attention_medium_sm90",
        kernels: &["attention_medium", "attention_medium_grad"],
        has: &["HGMMA.64x32x16", "HGMMA.64x64x16", "UTMALDG.3D", "MUFU.EX2", "STSM.16.M88.4", "UTMASTG.3D"],
        lacks: &["LDGSTS", " HMMA", "LDG.E.128", "STG.E.128"],
    },
    Expected {
        file: "layer_norm",
        kernels: &["layer_norm_768", "layer_norm_grad_768"],
        has: &["LDG.E.128", "STG.E.128"],
        lacks: &[],
    },
    Expected {
        file: "patch_embed",
        kernels: &["patch_rows"],
        has: &["LDG.E.128", "LDG.E.64", "STG.E.128", "STG.E.64"],
        lacks: &[],
    },
    // Moments and weights are read once and written once: past the caches.
    Expected {
        file: "optimiser",
        kernels: &["adamw"],
        has: &["LDG.E.EF.128", "STG.E.EF.128"],
        lacks: &["LDG.E.128"],
    },
];

/// cuobjdump: beside nvcc in the wheels, or on the path.
fn cuobjdump() -> Option<PathBuf> {
    let wheel = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".cuda/nvidia/cu13/bin/cuobjdump");
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).map(|dir| dir.join("cuobjdump"));
    std::iter::once(wheel).chain(places).find(|place| place.is_file())
}

/// The instructions of each kernel of a fatbin, for sm_90a.
fn instructions(cuobjdump: &PathBuf, file: &str, image: &[u8]) -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let fatbin = folder.path().join(file).with_extension("fatbin");
    fs::write(&fatbin, image).unwrap();
    let out = Command::new(cuobjdump).args(["-sass", "-arch", "sm_90a"]).arg(&fatbin).output().unwrap();
    assert!(out.status.success(), "{file}: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let functions = text.split("Function : ").skip(1);
    functions.map(|f| f.split_once('\n').unwrap()).map(|(n, c)| (n.trim().to_owned(), c.to_owned())).collect()
}

/// The code of all kernels for sm_90a by file, where this build has any and there is cuobjdump.
fn code() -> Option<BTreeMap<&'static str, BTreeMap<String, String>>> {
    if IMAGES.is_empty() || !ARCHITECTURES.contains("sm_90a") {
        println!("skipped: this build has no kernels for sm_90a");
        return None;
    }
    let Some(cuobjdump) = cuobjdump() else {
        assert_ne!(env::var("GYRUS_CUDA").as_deref(), Ok("require"), "there is no cuobjdump");
        println!("skipped: there is no cuobjdump");
        return None;
    };
    Some(IMAGES.iter().map(|(file, image)| (*file, instructions(&cuobjdump, file, image))).collect())
}

#[test]
fn kernels_are_made_of_the_instructions_they_are_meant_to_have() {
    let Some(code) = code() else { return };
    let mut wrong = Vec::new();
    for (file, code) in &code {
        assert!(!code.is_empty(), "{file} has no code for sm_90a");
        for (kernel, code) in code {
            // Local memory: what does not fit the registers.
            let local = ["LDL", "STL"].into_iter().filter(|op| code.contains(&format!(" {op}")));
            wrong.extend(local.map(|op| format!("{kernel} has {op}")));
        }
        for expected in EXPECTED.iter().filter(|e| e.file == *file) {
            for kernel in expected.kernels {
                let code = code.get(*kernel).unwrap_or_else(|| panic!("{file} has no {kernel}"));
                let lacking = expected.has.iter().filter(|op| !code.contains(**op));
                wrong.extend(lacking.map(|op| format!("{kernel} lacks {op}")));
                let having = expected.lacks.iter().filter(|op| code.contains(**op));
                wrong.extend(having.map(|op| format!("{kernel} has {op}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The choice of tiles takes it for granted how many instructions leave one: those from the end of the products, the last
/// wait for the tensor cores, to the last store.
#[test]
fn tiles_are_left_in_as_many_instructions_as_their_choice_takes_for_granted() {
    let Some(code) = code() else { return };
    let mut wrong = Vec::new();
    for (kernel, believed) in ops::instructions_of_leaving() {
        let lines: Vec<&str> =
            code["linear_sm90"][kernel].lines().filter(|line| line.contains(';')).collect();
        let last = |opcodes: &[&str]| {
            lines.iter().rposition(|line| opcodes.iter().any(|op| line.contains(op))).unwrap()
        };
        let counted = last(&["UTMASTG", "STG.E"]) - last(&["WARPGROUP.DEPBAR"]);
        println!("{kernel}: {counted}, believed {believed}");
        if counted.abs_diff(believed) * 10 > believed {
            wrong.push(format!("{kernel}: {counted}, not {believed}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// In the loop over blocks exponentials are taken while the tensor cores add up what the block before has left: before
/// the wait for these sums. (Nothing in PTX keeps the compiler from waiting first.)
#[test]
fn attention_takes_exponentials_while_the_tensor_cores_work() {
    let Some(code) = code() else { return };
    // Most of them: with four warpgroups, which fill each other's waits, two thirds, else three quarters.
    for (file, kernel, [share, of]) in [
        ("attention_sm90", "attention_long", [2, 3]),
        ("attention_grad_sm90", "attention_long_grad_q", [3, 4]),
        ("attention_grad_sm90", "attention_long_grad_kv", [3, 4]),
    ] {
        let code: Vec<&str> = code[file][kernel].lines().filter(|line| line.contains(';')).collect();
        let address = |at: usize| code[at].trim_start().trim_start_matches("/*").split('*').next().unwrap();
        let back = |at: usize| {
            let target = code[at].split_once("BRA").and_then(|(_, to)| to.split_once("0x"))?;
            let target = target.1.split(' ').next().unwrap();
            (0..at).find(|&from| address(from).trim_start_matches('0') == target)
        };
        let loops = (0..code.len()).filter_map(|end| back(end).map(|from| &code[from..end]));
        let all = |code: &[&str], opcode: &str| code.iter().filter(|line| line.contains(opcode)).count();
        let turn = loops
            .filter(|turn| all(turn, "WARPGROUP.DEPBAR") == 2 && all(turn, "MUFU.EX2") > 16)
            .min_by_key(|turn| turn.len())
            .unwrap();
        let wait = turn.iter().position(|line| line.contains("WARPGROUP.DEPBAR")).unwrap();
        let [before, exponentials] = [&turn[..wait], turn].map(|code| all(code, "MUFU.EX2"));
        println!("{kernel}: {before} of {exponentials} exponentials before the wait");
        assert!(of * before > share * exponentials, "{kernel}: {before} of {exponentials}");
    }
}

/// A warpgroup that produces and two that consume start with equal shares of the registers; two blocks of the others
/// share a multiprocessor.
#[test]
fn kernels_of_products_fit_the_registers() {
    let mut seen = 0;
    for line in REPORT.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let (kernel, registers): (&str, u32) = (fields[0], fields[2].parse().unwrap());
        if !kernel.starts_with("linear") {
            continue;
        }
        let hopper = ["_wide", "_narrow", "_pingpong"].iter().any(|tile| kernel.ends_with(tile));
        let (threads, blocks) = if hopper { (384, 1) } else { (128, 2) };
        assert!(registers * threads * blocks <= 65_536, "{kernel}: {registers} registers");
        seen += 1;
    }
    assert!(seen > 0 || IMAGES.is_empty());
}
