//! Training steps that other implementations recorded, computed again.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use gyrus::cases::reference::{Comparison, compare};
use std::fs;
use std::path::{Path, PathBuf};

fn ours() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny")
}

fn failed(comparison: &Comparison) -> Vec<&str> {
    comparison.rows.iter().filter(|r| !r.passed()).map(|r| r.tensor.as_str()).collect()
}

fn assert_equal(folder: &Path) {
    let comparison = compare(folder).unwrap_or_else(|e| panic!("{e}"));
    let worst =
        |f: fn(&gyrus::cases::reference::Row) -> f64| comparison.rows.iter().map(f).fold(0.0, f64::max);
    println!(
        "{}: {} tensors, f64 {:.1e}, f32 {:.1e}",
        folder.display(),
        comparison.rows.len(),
        worst(|r| r.f64),
        worst(|r| r.f32)
    );
    assert!(comparison.not_compared.is_empty(), "not compared: {:?}", comparison.not_compared);
    let bad: Vec<_> = comparison.rows.iter().filter(|r| !r.passed()).collect();
    assert!(bad.is_empty(), "{}: {bad:#?}", folder.display());
}

#[test]
fn the_numpy_recording_is_computed_again() {
    assert_equal(&ours());
}

#[test]
fn recordings_shared_with_this_checkout_are_computed_again() {
    let shared = std::env::var_os("GYRUS_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let Ok(folders) = fs::read_dir(shared.join("golden")) else {
        println!("skipped: no recordings in {}", shared.join("golden").display());
        return;
    };
    for folder in folders.map(|f| f.unwrap().path()).filter(|f| f.join("meta.json").exists()) {
        assert_equal(&folder);
    }
}

/// A copy of our recording in which one file was changed.
fn altered(file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(ours()).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let path = copy.path().join(file);
    fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
    copy
}

/// The bytes of a safetensors file with the first value of `name` moved by a millionth of itself.
fn nudge(mut bytes: Vec<u8>, name: &str) -> Vec<u8> {
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let at = 8 + header + json[name]["data_offsets"][0].as_u64().unwrap() as usize;
    let value = f64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    bytes[at..at + 8].copy_from_slice(&(value * (1.0 + 1e-6) + 1e-7).to_le_bytes());
    bytes
}

#[test]
fn one_changed_value_fails() {
    for (file, name, row) in [
        ("activations.safetensors", "blocks.0.attn", "activation blocks.0.attn"),
        ("input.safetensors", "mask", "mask"),
        ("grads.1.safetensors", "mask_token", "step 1: gradient of mask_token"),
        ("params_after.2.safetensors", "norm.bias", "step 2: updated norm.bias"),
        ("finetune.safetensors", "grad.head.weight", "fine-tuning: gradient of head.weight"),
        ("sdpa_key_padding.safetensors", "grad_k", "padded attention: grad_k"),
    ] {
        let folder = altered(file, |bytes| nudge(bytes, name));
        let comparison = compare(folder.path()).unwrap();
        assert!(failed(&comparison).contains(&row), "{file} {name}: {:?}", failed(&comparison));
    }
    let changed_input = altered("input.safetensors", |bytes| nudge(bytes, "volume"));
    assert!(!failed(&compare(changed_input.path()).unwrap()).is_empty());
}

#[test]
fn what_is_missing_or_foreign_is_named() {
    let error = |folder: &Path| compare(folder).unwrap_err().to_string();
    let empty = tempfile::tempdir().unwrap();
    assert!(error(empty.path()).ends_with("meta.json: cannot read"), "{}", error(empty.path()));

    let copy = altered("meta.json", |b| b);
    fs::remove_file(copy.path().join("grads.2.safetensors")).unwrap();
    assert!(error(copy.path()).ends_with("grads.2.safetensors: cannot read"), "{}", error(copy.path()));

    let renamed = |bytes: Vec<u8>| {
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let text = String::from_utf8(bytes[8..8 + header].to_vec()).unwrap();
        let text = text.replace("\"mask_token\"", "\"mask_tokem\"");
        [&bytes[..8], text.as_bytes(), &bytes[8 + header..]].concat()
    };
    let copy = altered("params.safetensors", renamed);
    let message = error(copy.path());
    assert!(message.ends_with("params.safetensors: tensor `mask_token` is missing"), "{message}");

    let setting = |from: &'static str, to: &'static str| {
        let change = |b: Vec<u8>| {
            let text = String::from_utf8(b).unwrap();
            assert!(text.contains(from));
            text.replace(from, to).into_bytes()
        };
        error(altered("meta.json", change).path())
    };
    let message = setting("\"channels\": 1", "\"channels\": 2");
    assert!(message.ends_with("meta.json: `channels` is 2, but only 1 is supported"), "{message}");
    let message = setting("\"dim\": 10", "\"dim\": 12");
    assert!(message.contains("params.safetensors: tensor `pos_embed` has shape [1, 13, 10]"), "{message}");
}
