//! The built program, as a user runs it: tiny heads, a tiny grid, the whole way through and its refusals.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use gyrus::image::{self, Storage, Volume};
use std::{
    fs, io,
    path::Path,
    process::{self, Stdio},
    time::Duration,
};
use tempfile::TempDir;

mod command;
use command::gyrus;

/// What a command that fails with `code` says on stderr.
fn failure(folder: &TempDir, line: &str, code: i32) -> String {
    let assert = gyrus(folder, line).code(code);
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

/// A folder with heads of ten people and their cache.
fn prepared() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    gyrus(&folder, "phantom --out heads --subjects 10 --spacing 6").success();
    gyrus(&folder, "prepare heads --out cache --grid 16 16 16 --spacing 12").success();
    folder
}

const PRETRAIN: &str =
    "pretrain cache --set model.patch=8 --set train.batch=4 --set train.warmup_epochs=1 --set train.epochs=";
const FINETUNE: &str = "finetune cache --set train.batch=4 --set train.warmup_epochs=1 --set train.epochs=";

fn text(folder: &TempDir, file: &str) -> String {
    fs::read_to_string(folder.path().join(file)).unwrap()
}

#[test]
fn a_reader_that_goes_away_ends_a_command_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    gyrus(&folder, "phantom --out heads --subjects 1 --spacing 8").success();
    for line in ["inspect heads", "distort --print-recipe 3", "data heads"] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut command = process::Command::new(env!("CARGO_BIN_EXE_gyrus"));
        command.current_dir(&folder).args(line.split_whitespace()).stdout(writer);
        let output = command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*said), (Some(141), ""), "{line}");
    }
}

#[test]
fn the_whole_way_through() {
    let folder = prepared();
    gyrus(&folder, "prepare heads --out cache --grid 16 16 16 --spacing 12").success();
    gyrus(&folder, &format!("{PRETRAIN}2 --out mae")).success();
    gyrus(&folder, &format!("{FINETUNE}2 --from mae --out age --folds 2")).success();
    assert_eq!(text(&folder, "age/predictions.csv").lines().count(), 11);
    gyrus(&folder, "evaluate age --json").success();

    // The mean of two folds' models, of a folder, of a file that finds its mask, and of the cache.
    gyrus(&folder, "predict age heads -o ages.csv").success();
    gyrus(&folder, "predict age heads/sub-003/anat/sub-003_T1w.nii.gz -o one.csv").success();
    gyrus(&folder, "predict age cache -o rows.csv").success();
    let ages = text(&folder, "ages.csv");
    let line = |table: &str| table.lines().find(|l| l.contains("sub-003,")).unwrap().to_owned();
    assert_eq!(line(&ages), line(&text(&folder, "one.csv")));
    assert!(ages.contains("a subject of this name was trained on in 1 of 2 folds"), "{ages}");
    let years = |table: &str| line(table).split(',').nth(4).unwrap().parse::<f64>().unwrap();
    // The cache is in half precision.
    assert!((years(&ages) - years(&text(&folder, "rows.csv"))).abs() < 0.1);
    gyrus(&folder, "evaluate ages.csv age").success();
    let shown = gyrus(&folder, "predict age/fold-1/model.safetensors heads").success();
    assert_eq!(String::from_utf8_lossy(&shown.get_output().stdout).lines().count(), 11);

    gyrus(&folder, "embed mae cache -o features.csv").success();
    gyrus(&folder, "embed age/fold-1 heads -o features.safetensors").success();
    let features = text(&folder, "features.csv");
    assert_eq!(features.lines().count(), 11);
    assert!(
        features.starts_with("scan,subject,age,f0,") && features.lines().next().unwrap().ends_with(",f191")
    );
    let file = folder.path().join("features.safetensors");
    let (arrays, card) = gyrus::program::arrays::read::<f32>(&file).unwrap();
    assert_eq!(arrays["features"].shape, [10, 192]);
    assert!(card.unwrap().contains("sub-010_T1w.nii.gz"));

    // The cache is found beside the run; a page asks nobody for anything.
    gyrus(&folder, "report mae --count 1").success();
    gyrus(&folder, "report age --out age.html").success();
    let (mae, age) = (text(&folder, "mae/report.html"), text(&folder, "age.html"));
    assert!(mae.contains("<option value=\"0\">sub-001</option>") && !mae.contains("<option value=\"1\">sub"));
    assert!(
        age.contains("Predicted and true age") && age.contains("fold 2") && !age.contains("id=\"niivue\"")
    );
    for page in [&mae, &age] {
        assert!(page.ends_with("</html>\n") && !page.contains("src=\"http") && !page.contains("href=\"http"));
    }
    assert!(failure(&folder, "report heads", 1).contains("heads: it holds no run"));
    gyrus(&folder, "qc heads --out quality").success();
    gyrus(&folder, "report quality").success();
    assert!(text(&folder, "quality/report.html").contains("aria-label=\"Slices of sub-010\""));

    gyrus(&folder, "reconstruct mae heads --out pictures --count 2 --nifti").success();
    gyrus(&folder, "reconstruct mae cache --out rows --count 1").success();
    assert_eq!(fs::read_dir(folder.path().join("pictures")).unwrap().count(), 7);
    let volume =
        |what| image::read(&folder.path().join(format!("pictures/1_sub-001_{what}.nii.gz"))).unwrap().1;
    let (original, masked, made) = (volume("original"), volume("masked"), volume("reconstruction"));
    let head = image::read(&folder.path().join("heads/sub-001/anat/sub-001_T1w.nii.gz")).unwrap().1;
    // Where the scan lies: the centres of both grids are near each other.
    let centre = |v: &Volume, row: usize| {
        (0..3).map(|j| v.affine[row][j] * 0.5 * (v.shape[j] - 1) as f64).sum::<f64>() + v.affine[row][3]
    };
    assert!((0..3).all(|row| (centre(&original, row) - centre(&head, row)).abs() < 50.0));
    for ((&o, &m), &r) in original.data.iter().zip(&masked.data).zip(&made.data) {
        assert!(if m.is_nan() { (r == -4.0) == (o == -4.0) } else { m == o && r == o });
    }
    let share = masked.data.iter().filter(|v| v.is_nan()).count() as f64 / masked.data.len() as f64;
    assert_eq!(share, 0.75);
}

#[test]
fn a_killed_run_goes_on_to_the_same_bits() {
    let folder = prepared();
    let line = format!("{PRETRAIN}40 --set train.checkpoint_epochs=2 --set train.validation=0.2");
    gyrus(&folder, &format!("{line} --out whole")).success();
    let mut run = process::Command::new(env!("CARGO_BIN_EXE_gyrus"))
        .current_dir(&folder)
        .args(line.split_whitespace().chain(["--out", "killed"]))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !folder.path().join("killed/last.safetensors").exists() {
        assert!(run.try_wait().unwrap().is_none(), "it must not end before its first checkpoint");
        std::thread::sleep(Duration::from_millis(1));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(text(&folder, "killed/metrics.jsonl").len() < text(&folder, "whole/metrics.jsonl").len());
    gyrus(&folder, "pretrain cache --out killed --resume").success();
    for file in ["metrics.jsonl", "model.safetensors", "last.safetensors"] {
        let bytes = |run: &str| fs::read(folder.path().join(run).join(file)).unwrap();
        assert!(bytes("whole") == bytes("killed"), "{file} differs");
    }
}

/// Neither from the start nor when a run that kept everything goes on.
#[test]
fn recomputing_changes_no_bit_of_a_run() {
    let folder = prepared();
    gyrus(&folder, &format!("{PRETRAIN}2 --out kept")).success();
    gyrus(&folder, &format!("{PRETRAIN}2 --recompute --out recomputed")).success();
    assert!(text(&folder, "kept/config.toml").contains("recompute = false"));
    assert!(text(&folder, "recomputed/config.toml").contains("recompute = true"));
    for (from, line) in [("kept", "--out kept-age"), ("recomputed", "--recompute --out recomputed-age")] {
        gyrus(&folder, &format!("{FINETUNE}1 --from {from} {line}")).success();
    }
    gyrus(&folder, "pretrain cache --out kept --resume --recompute").success();
    for (kept, recomputed) in [("kept", "recomputed"), ("kept-age", "recomputed-age")] {
        for file in ["metrics.jsonl", "model.safetensors", "last.safetensors"] {
            let bytes = |run: &str| fs::read(folder.path().join(run).join(file)).unwrap();
            assert!(bytes(kept) == bytes(recomputed), "{file} of {recomputed} differs");
        }
    }
}

/// `volume` with its axes in the order x = old y, y = old z, z = old x, the first one running backwards.
fn turned(volume: &Volume) -> Volume {
    let [nx, ny, nz] = volume.shape;
    let shape = [ny, nz, nx];
    let mut data = Vec::new();
    for (c, b, a) in (0..nx).flat_map(|c| (0..nz).flat_map(move |b| (0..ny).map(move |a| (c, b, a)))) {
        data.push(volume.data[(b * ny + (ny - 1 - a)) * nx + c]);
    }
    let mut affine = volume.affine;
    for (row, old) in affine.iter_mut().zip(volume.affine).take(3) {
        *row = [-old[1], old[2], old[0], old[3] + old[1] * (ny - 1) as f64];
    }
    Volume { shape, affine, data }
}

/// The file of `volume` as 64-bit floats, big-endian or little-endian.
fn doubles(path: &Path, volume: &Volume, big_endian: bool) {
    image::write(path, volume, Storage::F32).unwrap();
    let mut header = fs::read(path).unwrap()[..352].to_vec();
    header[70..72].copy_from_slice(&64_i16.to_le_bytes());
    header[72..74].copy_from_slice(&64_i16.to_le_bytes());
    let mut bytes = header.clone();
    if big_endian {
        // nifti1.h: offset, width, count.
        let fields = [
            (0, 4, 1),
            (40, 2, 8),
            (56, 4, 3),
            (68, 2, 4),
            (76, 4, 11),
            (120, 2, 1),
            (124, 4, 4),
            (252, 2, 2),
            (256, 4, 18),
        ];
        for (at, width, count) in fields {
            bytes[at..at + width * count].chunks_mut(width).for_each(<[u8]>::reverse);
        }
    }
    let double = |&v: &f32| if big_endian { f64::from(v).to_be_bytes() } else { f64::from(v).to_le_bytes() };
    bytes.extend(volume.data.iter().flat_map(double));
    fs::write(path, bytes).unwrap();
}

#[test]
fn the_same_head_has_the_same_age_however_it_is_stored() {
    let folder = prepared();
    gyrus(&folder, &format!("{FINETUNE}2 --from scratch --set model.patch=8 --out age")).success();
    let read = |path: &str| image::read(&folder.path().join("heads").join(path)).unwrap().1;
    let mut head = read("sub-002/anat/sub-002_T1w.nii.gz");
    let mask = read("derivatives/phantom/sub-002/anat/sub-002_desc-brain_mask.nii.gz");
    head.data.iter_mut().for_each(|v| *v = v.round());
    let at = |name: &str| folder.path().join(name);
    image::write(&at("i16.nii.gz"), &head, Storage::I16).unwrap();
    image::write(&at("f32.nii"), &head, Storage::F32).unwrap();
    image::write(&at("turned.nii.gz"), &turned(&head), Storage::I16).unwrap();
    image::write(&at("mask.nii.gz"), &mask, Storage::U8).unwrap();
    image::write(&at("turned_mask.nii.gz"), &turned(&mask), Storage::U8).unwrap();
    doubles(&at("f64.nii"), &head, false);
    doubles(&at("big.nii"), &turned(&head), true);
    assert!(image::nifti::header(&at("big.nii")).unwrap().big_endian);
    let manifest = "path,mask\ni16.nii.gz,mask.nii.gz\nf32.nii,mask.nii.gz\nf64.nii,mask.nii.gz\n\
                    turned.nii.gz,turned_mask.nii.gz\nbig.nii,turned_mask.nii.gz\n";
    fs::write(at("list.csv"), manifest).unwrap();
    gyrus(&folder, "predict age list.csv -o ages.csv").success();
    gyrus(&folder, "predict age i16.nii.gz --mask mask.nii.gz -o one.csv").success();
    let years = |table: &str| -> Vec<f64> {
        let table = gyrus::study::predictions::read(&folder.path().join(table)).unwrap();
        table.iter().map(|p| p.predicted_age).collect()
    };
    let (all, one) = (years("ages.csv"), years("one.csv"));
    assert_eq!((all.len(), one.len()), (5, 1));
    assert!(all.iter().all(|y| (y - one[0]).abs() < 1e-5), "{all:?} {one:?}");
}

#[test]
fn mistakes_are_refused_by_name() {
    let folder = prepared();
    let said = failure(&folder, "pretrain cache --out mae --set train.epoch=3", 1);
    assert!(said.contains("train.epoch") && said.contains("did you mean `train.epochs`?"), "{said}");
    assert!(!folder.path().join("mae").exists());

    gyrus(&folder, &format!("{PRETRAIN}1 --out mae")).success();
    gyrus(&folder, &format!("{FINETUNE}1 --from mae --out age")).success();
    assert!(failure(&folder, &format!("{PRETRAIN}1 --out mae"), 1).contains("mae: holds a run already"));
    let again = failure(&folder, &format!("{FINETUNE}1 --from mae --out age"), 1);
    assert!(again.contains("age: holds a run already"), "{again}");
    let again = failure(&folder, "phantom --out heads --subjects 10 --spacing 6", 1);
    assert!(again.contains("heads: already holds a dataset"), "{again}");
    assert!(failure(&folder, "demo --out heads", 1).contains("heads: exists already"));

    let said = failure(&folder, "predict mae heads", 1);
    assert!(
        said.contains("mae/model.safetensors: it is a pretrained model, which predicts no ages"),
        "{said}"
    );
    let said = failure(&folder, "reconstruct age cache --out x", 1);
    assert!(said.contains("it predicts ages; only a pretrained model reconstructs"), "{said}");
    let said = failure(&folder, &format!("{FINETUNE}1 --from age --out x"), 1);
    assert!(said.contains("it predicts ages already"), "{said}");
    assert!(failure(&folder, "predict nowhere heads", 1).contains("nowhere"));

    gyrus(&folder, "prepare heads --out other --grid 8 8 8 --spacing 20").success();
    let said = failure(&folder, "embed mae other -o f.csv", 1);
    assert!(said.contains("other: is prepared to 8x8x8 voxels of 20 mm"), "{said}");
    assert!(failure(&folder, "embed mae cache -o f.npy", 1).contains("f.npy: give --out the ending"));
    let said = failure(&folder, "predict age heads --mask m.nii", 1);
    assert!(said.contains("--mask is for one scan, but 10 were given"), "{said}");

    fs::write(folder.path().join("bad.nii"), b"not an image").unwrap();
    let line = "predict age heads/sub-001/anat/sub-001_T1w.nii.gz missing.nii bad.nii -o ages.csv";
    let said = failure(&folder, line, 3);
    assert!(said.contains("left out:") && said.contains("missing.nii") && said.contains("bad.nii"), "{said}");
    assert_eq!(text(&folder, "ages.csv").lines().count(), 2);
}

#[test]
fn a_voxel_that_is_no_number_stops_training_by_step_and_scan() {
    let folder = prepared();
    let path = folder.path().join("cache/volumes.npy");
    let mut bytes = fs::read(&path).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    // The middle voxel of row 6, which is sub-007.
    let at = header + 2 * (6 * 16 * 16 * 16 + (8 * 16 + 8) * 16 + 8);
    bytes[at..at + 2].copy_from_slice(&0x7e00_u16.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let said = failure(&folder, &format!("{PRETRAIN}20 --set train.validation=0 --out mae"), 1);
    assert!(said.contains("not finite at step") && said.contains("sub-007_T1w.nii.gz"), "{said}");
    assert!(!said.contains("every scan of the batch"), "{said}");
}
