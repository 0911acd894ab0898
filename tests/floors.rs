//! A module uses only modules on floors below its own; floors are the groups of `pub mod` lines in lib.rs.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] }).collect()
}

/// The floor of every module, by the groups that blank lines make.
fn floors(lib: &str) -> HashMap<&str, usize> {
    let groups = lib.split("\n\n").enumerate();
    let modules = groups.flat_map(|(floor, group)| group.lines().map(move |line| (line, floor)));
    modules.filter_map(|(l, floor)| Some((l.strip_prefix("pub mod ")?.strip_suffix(';')?, floor))).collect()
}

/// The modules named after `crate::` in code, whether in a `use` (also `use crate::{a, b}`) or in a path.
fn used(text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
    let code = code.join(" ");
    let word =
        |s: &str| s.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = Vec::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            None => names.push(word(after)),
            Some(list) => {
                let mut depth = 0;
                let mut start = 0;
                for (i, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth > 0 => depth -= 1,
                        ',' | '}' if depth == 0 => {
                            names.push(word(&list[start..i]));
                            start = i + 1;
                            if c == '}' {
                                break;
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names.retain(|n| !n.is_empty());
    names
}

#[test]
fn imports_go_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = fs::read_to_string(src.join("lib.rs")).unwrap();
    let floors = floors(&lib);
    assert!(floors["error"] < floors["tape"] && floors["ops"] < floors["cases"], "{floors:?}");
    let mut climbs = Vec::new();
    let code = files(&src).into_iter().filter(|f| f.extension().is_some_and(|e| e == "rs"));
    for file in code.filter(|f| !f.ends_with("lib.rs") && !f.ends_with("main.rs")) {
        let inside = file.strip_prefix(&src).unwrap();
        let module = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        for used in used(&fs::read_to_string(&file).unwrap()) {
            let down = used == module || floors.get(&*used).is_some_and(|f| *f < floors[module]);
            if !down {
                climbs.push(format!("{} uses {used}, which is not below {module}", inside.display()));
            }
        }
    }
    assert!(climbs.is_empty(), "{climbs:#?}");
}

#[test]
fn every_way_to_name_a_module_is_seen() {
    let text =
        "use crate::{a::{B, C}, d,\n    e};\nfn f() { crate::g::h(); } // crate\nuse crate::i;\n// crate::no";
    assert_eq!(used(text), ["a", "d", "e", "g", "i"]);
}
