//! `gyrus data`: what is found in datasets, splits that runs follow, and what two datasets share.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use assert_cmd::assert::Assert;
use gyrus::image::{self, Storage};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

mod command;
use command::gyrus;

fn stdout(assert: Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

fn stderr(assert: Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

fn heads(people: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    gyrus(&folder, &format!("phantom --out heads --subjects {people} --spacing 6")).success();
    folder
}

/// The T1w of person `i` from 1.
fn head(folder: &TempDir, i: usize) -> PathBuf {
    folder.path().join(format!("heads/sub-{i:03}/anat/sub-{i:03}_T1w.nii.gz"))
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_survey_counts_finds_copies_and_doubts_ages() {
    let folder = heads(8);
    let shown = stdout(gyrus(&folder, "data heads").success());
    assert!(shown.starts_with("heads: 8 scans of 8 subjects in 8 visits\n"), "{shown}");
    assert!(shown.contains("8 read, 0 cannot be; 0 groups of copies"), "{shown}");

    // A copy of a file, a recompressed copy, a broken file, and ages in months.
    fs::copy(head(&folder, 1), head(&folder, 2)).unwrap();
    let (_, volume) = image::read(&head(&folder, 3)).unwrap();
    image::write(&head(&folder, 4), &volume, Storage::F32).unwrap();
    let good = fs::read(head(&folder, 5)).unwrap();
    fs::write(head(&folder, 5), &good[..good.len() / 2]).unwrap();
    let table = folder.path().join("heads/participants.tsv");
    let lines = fs::read_to_string(&table).unwrap();
    let mut lines = lines.lines().map(|l| l.split('\t').map(str::to_owned).collect::<Vec<_>>());
    let header = lines.next().unwrap();
    let age = header.iter().position(|h| h == "age").unwrap();
    let months = lines.map(|mut cells| {
        cells[age] = format!("{}", cells[age].parse::<f64>().unwrap() * 12.0);
        cells.join("\t")
    });
    fs::write(&table, std::iter::once(header.join("\t")).chain(months).collect::<Vec<_>>().join("\n"))
        .unwrap();
    let shown = stdout(gyrus(&folder, "data heads --json survey.json").code(3));
    for words in [
        "sub-001/anat/sub-001_T1w.nii.gz = sub-002/anat/sub-002_T1w.nii.gz",
        "sub-003/anat/sub-003_T1w.nii.gz = sub-004/anat/sub-004_T1w.nii.gz",
        "7 read, 1 cannot be; 2 groups of copies",
        "sub-005_T1w.nii.gz: not a usable NIfTI image",
        "ages seem to be in months",
        "no split can know: sub-001 = sub-002, sub-003 = sub-004",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let survey = json(&folder.path().join("survey.json"));
    assert_eq!((survey["scans"].as_u64(), survey["same_voxels"].as_array().unwrap().len()), (Some(8), 1));
    // Training does not take such ages.
    let refused = stderr(gyrus(&folder, "data heads --split folds:2 --out split.tsv").code(1));
    assert!(refused.contains("ages are years"), "{refused}");
    gyrus(&folder, "data heads --no-images").success();
}

#[test]
fn trees_manifests_and_grades_are_surveyed() {
    let folder = heads(3);
    for (i, file) in [(1, "PT1_A/sub_1/ses_1/t1.nii.gz"), (2, "PT1_A/sub_1/ses_2/t1.nii.gz")] {
        let to = folder.path().join("tree").join(file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(head(&folder, i), to).unwrap();
    }
    fs::copy(head(&folder, 3), folder.path().join("tree/PT1_A/sub_1/ses_2/t1_2.nii.gz")).unwrap();
    fs::copy(head(&folder, 3), folder.path().join("tree/PT1_A/sub_1/ses_2/what.nii.gz")).unwrap();
    let shown = stdout(gyrus(&folder, "data tree").success());
    for words in
        ["1 subjects in 2 visits", "3 T1w, 1 unknown", "1 subjects have several; 1 scans repeat", "1 PT1_A"]
    {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    assert!(shown.contains("nothing says the modality of 1 scans"), "{shown}");
    // What cannot be told is left out and named.
    let out = stderr(gyrus(&folder, "prepare tree --out tree-cache --grid 16 16 16 --spacing 12").code(3));
    assert!(out.contains("what.nii.gz: nothing says its modality"), "{out}");

    let manifest = "path\tsubject\tmodality\ttracer\tage\tsite\tdiagnosis\n\
                    heads/sub-001/anat/sub-001_T1w.nii.gz\ta\tT1\t\t30\tX\thealthy\n\
                    heads/sub-002/anat/sub-002_T1w.nii.gz\ta\tpet\t18FFDG\t30\tX\thealthy\n";
    fs::write(folder.path().join("list.tsv"), manifest).unwrap();
    let qc = folder.path().join("qc");
    fs::create_dir(&qc).unwrap();
    fs::write(
        qc.join("qc.tsv"),
        "path\tscore\tgrade\nheads/sub-001/anat/sub-001_T1w.nii.gz\t81\tAcceptable\nother.nii\t1\tExclude\n",
    )
    .unwrap();
    let shown = stdout(gyrus(&folder, "data list.tsv --qc qc").success());
    for words in ["1 PET-FDG, 1 T1w", "1 X", "1 CN", "1 Acceptable", "1 scans have no grade"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
}

#[test]
fn runs_follow_a_split_and_refuse_one_that_does_not_fit() {
    let folder = heads(12);
    gyrus(&folder, "prepare heads --out cache --grid 16 16 16 --spacing 12").success();
    gyrus(&folder, "data heads --split folds:3 --seed 5 --out folds.tsv").success();
    gyrus(&folder, "data cache --split folds:3 --seed 5 --out again.tsv").success();
    let text = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap();
    let folds = text("folds.tsv");
    assert_eq!((folds.lines().count(), &folds), (13, &text("again.tsv")));

    let small = "--set train.batch=4 --set train.warmup_epochs=1 --set train.epochs=1";
    let tune = format!("finetune cache --from scratch --set model.patch=8 {small}");
    gyrus(&folder, &format!("{tune} --split folds.tsv --out age")).success();
    let fold_of: BTreeMap<&str, &str> = folds.lines().skip(1).map(|l| l.split_once('\t').unwrap()).collect();
    let mut table = csv::Reader::from_path(folder.path().join("age/predictions.csv")).unwrap();
    let header = table.headers().unwrap().clone();
    let cell =
        |row: &csv::StringRecord, name: &str| row[header.iter().position(|h| h == name).unwrap()].to_owned();
    let rows: Vec<csv::StringRecord> = table.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 12);
    for row in &rows {
        assert_eq!(fold_of[cell(row, "subject").as_str()], format!("fold-{}", cell(row, "fold")));
    }

    gyrus(&folder, "data heads --split holdout:0.25 --out holdout.tsv").success();
    let holdout = text("holdout.tsv");
    let tests: Vec<&str> = holdout.lines().filter_map(|l| l.strip_suffix("\ttest")).collect();
    assert_eq!(tests.len(), 3);
    let train = format!("pretrain cache --set model.patch=8 {small}");
    gyrus(&folder, &format!("{train} --split holdout.tsv --out mae")).success();
    gyrus(&folder, &format!("finetune cache --from mae {small} --split holdout.tsv --out held")).success();
    let held = text("held/predictions.csv");
    assert_eq!(held.lines().count(), 4);
    assert!(tests.iter().all(|t| held.contains(&format!(",{t},"))), "{held}");
    // Both runs followed the same file, and neither saw those held out.
    for run in ["mae", "held"] {
        let file = folder.path().join(run).join("model.safetensors");
        let card = gyrus::program::arrays::read::<f32>(&file).unwrap().1.unwrap();
        let card: serde_json::Value = serde_json::from_str(&card).unwrap();
        let subjects = card["data"]["subjects"].as_array().unwrap();
        assert!(tests.iter().all(|t| !subjects.contains(&serde_json::json!(t))), "{run}: {card}");
        assert_eq!(text(&format!("{run}/subjects.tsv")), holdout);
    }
    let leaks = stdout(gyrus(&folder, "data --leakage mae cache").code(1));
    assert!(leaks.contains("files       not compared"), "{leaks}");
    gyrus(&folder, "finetune cache --from mae --out held --resume --split folds.tsv").code(1);

    let refused = |split: &str, line: &str| {
        fs::write(folder.path().join("bad.tsv"), split).unwrap();
        stderr(gyrus(&folder, &format!("{line} --split bad.tsv --out bad")).failure())
    };
    let error = refused(&holdout.replace("sub-004", "sub-404"), &tune);
    assert!(error.contains("does not say the part of sub-004"), "{error}");
    fs::remove_dir_all(folder.path().join("bad")).unwrap();
    let error = refused(&format!("{holdout}{}\t{}\n", tests[0], "train"), &tune);
    assert!(error.contains(&format!("in two parts: {}", tests[0])), "{error}");
    assert!(!folder.path().join("bad").exists());
    let error = refused(&folds, &train);
    assert!(error.contains("has folds"), "{error}");
}

#[test]
fn leakage_is_found_by_name_by_file_and_by_voxels() {
    let folder = heads(6);
    // With its mask, since a cache knows voxels as they are once prepared.
    let copy = |from: usize, to: &str| {
        let derivatives =
            fs::read_dir(folder.path().join("heads/derivatives")).unwrap().next().unwrap().unwrap();
        let mask = |root: &Path, s: &str| root.join(format!("{s}/anat/{s}_desc-brain_mask.nii.gz"));
        let other = folder.path().join("other");
        let path = other.join(format!("{to}/anat/{to}_T1w.nii.gz"));
        let copied = mask(&other.join("derivatives/masks"), to);
        [&path, &copied].iter().for_each(|p| fs::create_dir_all(p.parent().unwrap()).unwrap());
        fs::copy(head(&folder, from), &path).unwrap();
        fs::copy(mask(&derivatives.path(), &format!("sub-{from:03}")), copied).unwrap();
        path
    };
    // A stranger with the file of sub-005, and one with its voxels written anew.
    copy(5, "sub-x");
    let path = copy(6, "sub-y");
    let (_, volume) = image::read(&path).unwrap();
    image::write(&path, &volume, Storage::F32).unwrap();
    fs::create_dir(folder.path().join("apart")).unwrap();
    for i in 1..5 {
        let name = format!("heads/sub-{i:03}");
        fs::rename(folder.path().join(&name), folder.path().join(format!("apart/sub-{i:03}"))).unwrap();
    }
    let none = stdout(gyrus(&folder, "data --leakage apart heads").success());
    assert_eq!(none.matches("0 shared").count(), 3, "{none}");

    let shown = stdout(gyrus(&folder, "data --leakage heads other --json leaks.json").code(1));
    assert!(shown.contains("subjects    0 shared"), "{shown}");
    assert!(shown.contains("sub-005_T1w.nii.gz = other/sub-x/anat/sub-x_T1w.nii.gz"), "{shown}");
    let leaks = json(&folder.path().join("leaks.json"));
    let counts = ["subjects", "files", "voxels"].map(|what| leaks[what].as_array().unwrap().len());
    assert_eq!(counts, [0, 1, 2]);

    fs::write(folder.path().join("same.tsv"), "subject_1\tsubject_2\nsub-003\tsub-x\n").unwrap();
    let shown = stdout(gyrus(&folder, "data --leakage apart other --same-subject same.tsv").code(1));
    assert!(shown.contains("sub-003 = sub-x"), "{shown}");

    // Caches of the same preparation, and a dataset seen as the cache sees it.
    for dataset in ["heads", "other"] {
        gyrus(&folder, &format!("prepare {dataset} --out {dataset}-cache --grid 16 16 16 --spacing 12"))
            .success();
    }
    gyrus(&folder, "prepare other --out finer --grid 32 32 32 --spacing 6").success();
    for (line, voxels) in [
        ("heads-cache other-cache", "voxels      2 shared"),
        ("heads other-cache", "voxels      2 shared"),
        ("heads-cache finer", "voxels      not compared"),
    ] {
        let shown = stdout(gyrus(&folder, &format!("data --leakage {line}")).code(1));
        assert!(shown.contains("files       1 shared") && shown.contains(voxels), "{line}: {shown}");
    }
}
