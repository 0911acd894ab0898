//! `gyrus distort` as a user runs it: deterministic, resumed, refused, and taken by `gyrus prepare`.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use gyrus::image;
use std::{collections::BTreeMap, fs, path::Path, path::PathBuf};
use tempfile::TempDir;

mod command;
use command::gyrus;

/// What a command that fails with `code` says on stderr.
fn failure(folder: &TempDir, line: &str, code: i32) -> String {
    let assert = gyrus(folder, line).code(code);
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

fn heads(subjects: u32) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    gyrus(&folder, &format!("phantom --out heads --subjects {subjects} --spacing 6")).success();
    folder
}

/// Every file under `folder`, by its path there.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(here) = open.pop() {
        for entry in fs::read_dir(here).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                all.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    all
}

#[test]
fn a_distorted_dataset_is_the_same_again_and_after_losing_a_file_and_can_be_prepared() {
    let folder = heads(4);
    gyrus(&folder, "distort heads --level 4 --out a").success();
    gyrus(&folder, "distort heads --level 4 --out b").success();
    let (a, b) = (files(&folder.path().join("a")), files(&folder.path().join("b")));
    assert!(a == b);
    let image = "sub-002/anat/sub-002_T1w.nii.gz";
    let mask = "derivatives/phantom/sub-002/anat/sub-002_desc-brain_mask.nii.gz";
    for lost in [image, mask, "participants.tsv", "sub-003/anat/sub-003_T1w.json"] {
        fs::remove_file(folder.path().join("b").join(lost)).unwrap();
        gyrus(&folder, "distort heads --level 4 --out b").success();
        assert!(files(&folder.path().join("b")) == a, "{lost}");
    }

    let sidecar: serde_json::Value =
        serde_json::from_slice(&a[Path::new("sub-002/anat/sub-002_T1w.json")]).unwrap();
    let made = &sidecar["Distortion"];
    assert_eq!((made["Level"].as_str(), made["Source"].as_str()), (Some("4"), Some(image)));
    assert_eq!(made["Applied"].as_array().unwrap().len(), 8);
    let before = fs::read(folder.path().join("heads").join(image)).unwrap();
    assert_eq!(made["SourceBLAKE3"], blake3::hash(&before).to_hex().to_string());
    let about: serde_json::Value = serde_json::from_slice(&a[Path::new("dataset_description.json")]).unwrap();
    assert_eq!(about["DatasetType"], "derivative");
    // The mask is cut as the image is.
    let read = |file: &str| image::read(&folder.path().join("a").join(file)).unwrap().1;
    let (image, mask) = (read(image), read(mask));
    assert_eq!((image.shape, image.affine), (mask.shape, mask.affine));
    gyrus(&folder, "prepare a --out cache --grid 16 16 16 --spacing 12").success();
}

#[test]
fn a_share_of_the_subjects_is_distorted_and_the_others_are_as_they_were() {
    let folder = heads(6);
    gyrus(&folder, "distort heads --level 2 --share 0.5 --out half").success();
    let table = fs::read_to_string(folder.path().join("half/participants.tsv")).unwrap();
    assert!(table.starts_with("participant_id\tage\tsex\tdistortion_level\n"), "{table}");
    let mut distorted = 0;
    for line in table.lines().skip(1) {
        let cells: Vec<&str> = line.split('\t').collect();
        let file = format!("{0}/anat/{0}_T1w.nii.gz", cells[0]);
        let bytes = |dataset: &str| fs::read(folder.path().join(dataset).join(&file)).unwrap();
        assert_eq!(cells[3] == "0", bytes("heads") == bytes("half"), "{line}");
        distorted += u32::from(cells[3] == "2");
    }
    assert_eq!(distorted, 3);
}

#[test]
fn recipes_are_printed_and_taken() {
    let folder = heads(1);
    let printed = gyrus(&folder, "distort --print-recipe 2").success();
    fs::write(folder.path().join("r.toml"), &printed.get_output().stdout).unwrap();
    gyrus(&folder, "distort heads --recipe r.toml --out a").success();
    gyrus(&folder, "distort heads --level 2 --out b").success();
    let file = "sub-001/anat/sub-001_T1w.nii.gz";
    let bytes = |dataset: &str| fs::read(folder.path().join(dataset).join(file)).unwrap();
    assert!(bytes("a") == bytes("b"));
    fs::write(folder.path().join("r.toml"), "[noise]\nsigm = 0.1\n").unwrap();
    let said = failure(&folder, "distort heads --recipe r.toml --out c", 1);
    assert!(said.contains("r.toml, line 2: unknown key `noise.sigm`; did you mean `noise.sigma`?"), "{said}");
    fs::write(folder.path().join("r.toml"), "[noise]\nsigma = -1\n").unwrap();
    let said = failure(&folder, "distort heads --recipe r.toml --out c", 1);
    assert!(said.contains("noise.sigma must be from 0 to 2"), "{said}");
}

#[test]
fn what_cannot_be_distorted_is_refused_and_named() {
    let folder = heads(2);
    gyrus(&folder, "distort heads --level 1 --out a").success();
    assert!(failure(&folder, "distort heads --level 2 --out a", 1).contains("give another --out"));
    assert!(failure(&folder, "distort heads --level 1 --out heads", 1).contains("holds another dataset"));
    assert!(failure(&folder, "distort heads --level 5 --out b", 2).contains('5'));
    // One broken scan does not stop the others.
    fs::write(folder.path().join("heads/sub-001/anat/sub-001_T1w.nii.gz"), b"no image").unwrap();
    assert!(failure(&folder, "distort heads --level 1 --out c", 3).contains("sub-001_T1w.nii.gz"));
    assert!(folder.path().join("c/sub-002/anat/sub-002_T1w.nii.gz").exists());
}
