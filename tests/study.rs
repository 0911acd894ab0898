//! `gyrus study`: small studies from beginning to end, and that nothing which stops one changes what it finds.
//! `GYRUS_KILLS=20` kills more often than the default.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use assert_cmd::assert::Assert;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

mod command;
use command::gyrus;

/// Everybody is pretrained on and tested: graded, distorted, mixed.
const ONE: &str = r#"
title = "One dataset"
phantom = [{ name = "heads", subjects = 18, seed = 1, spacing = 8 }]
pretraining.dataset = "heads"
cohort.dataset = "heads"
grading = [{ name = "qc", by = "score", tiers = ["low", "high"] }]
distortion = { tiers = [2, "erase.toml"], mixtures = [0.5] , seed = 3 }
design = { seeds = 2, folds = 3, age_bins = 1, curve = [0.5] }
prepare = { grid = [16, 16, 16] }
pretrain = { model = { patch = 8 }, train = { epochs = 3, batch = 4, warmup_epochs = 0, checkpoint_epochs = 1 } }
finetune = { train = { epochs = 2, batch = 4, warmup_epochs = 0, checkpoint_epochs = 1 } }
"#;

/// Others are tested than are pretrained on, and there is a PET.
const TWO: &str = r#"
phantom = [
    { name = "heads", subjects = 12, seed = 1, spacing = 8, missing = 0.3 },
    { name = "people", subjects = 9, seed = 2, spacing = 8 },
]
pretraining.dataset = "heads"
cohort.dataset = "people"
design = { seeds = 2, folds = 3, reserve = 0.2 }
prepare = { grid = [16, 16, 16], modalities = ["T1w", "PET-FDG"] }
pretrain = { model = { patch = 8 }, train = { epochs = 2, batch = 4, warmup_epochs = 0 } }
finetune = { train = { epochs = 2, batch = 4, warmup_epochs = 0 } }
"#;

const RECIPE: &str = "[blur]\nfwhm_mm = 20.0\n\n[noise]\nsigma = 0.3\n";

/// A folder with a study's file.
fn folder(study: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("study.toml"), study).unwrap();
    fs::write(folder.path().join("erase.toml"), RECIPE).unwrap();
    folder
}

fn stdout(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

/// A tab-separated table, a map for each line.
fn table(path: &Path) -> Vec<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines().map(|line| line.split('\t').map(str::to_owned).collect::<Vec<String>>());
    let header = lines.next().unwrap();
    lines.map(|line| header.iter().cloned().zip(line).collect()).collect()
}

/// What is found, whatever stopped it.
fn found(out: &Path) -> [Vec<u8>; 3] {
    ["table.tsv", "comparisons.tsv", "predictions.tsv"].map(|name| fs::read(out.join(name)).unwrap())
}

#[test]
fn arms_have_equal_scans_and_nobody_is_tested_by_a_model_that_saw_them() {
    let folder = folder(ONE);
    let out = folder.path().join("out");
    let shown = stdout(&gyrus(&folder, "study study.toml --out out").success());
    assert!(shown.contains("18 of the tested people are also pretrained on"), "{shown}");
    assert!(shown.contains("a pretraining of its own"), "{shown}");
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("One dataset") && page.contains("<h2 id=\"h0\">What can be said</h2>"), "{page}");
    gyrus(&folder, "report out --out again.html").success();
    assert_eq!(fs::read_to_string(folder.path().join("again.html")).unwrap(), page);

    let arms = table(&out.join("table.tsv"));
    let names: Vec<&str> = arms.iter().map(|arm| arm["arm"].as_str()).collect();
    let expected =
        ["random", "qc-low", "qc-high", "level-2", "erase", "erase-50%", "all", "scratch", "readout"];
    assert_eq!(names, expected);
    for arm in &arms {
        let (scans, same) = (&arm["scans"], &arms[0]["scans"]);
        match arm["arm"].as_str() {
            "all" => assert_eq!(scans, "12"),
            "scratch" | "readout" => assert_eq!(scans, "0"),
            _ => assert_eq!((scans, &arm["steps"]), (same, &arms[0]["steps"])),
        }
        assert!(arm["mae"].parse::<f64>().unwrap() > 0.0);
    }

    let mut units = 0;
    for run in fs::read_dir(out.join("runs")).unwrap() {
        for (seed, fold) in [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)] {
            let unit = run.as_ref().unwrap().path().join(format!("seed-{seed}/fold-{fold}"));
            let record: serde_json::Value =
                serde_json::from_slice(&fs::read(unit.join("unit.json")).unwrap()).unwrap();
            let tested = record["fine_tuned"].as_array().into_iter().chain(record["frozen"].as_array());
            let tested: BTreeSet<&str> =
                tested.flatten().map(|row| row["subject"].as_str().unwrap()).collect();
            assert_eq!(tested.len(), 6);
            let list = unit.join("scans.tsv");
            let trained = if list.exists() { table(&list) } else { Vec::new() };
            assert!(trained.iter().all(|row| !tested.contains(row["subject"].as_str())), "{unit:?}");
            assert!(!unit.join("pretrain/model.safetensors").exists(), "models are removed");
            units += 1;
        }
    }
    // Each tier and the reference have a point of a learning curve more.
    assert_eq!(units, 6 * (expected.len() + 5));
    let predictions = table(&out.join("predictions.tsv"));
    let of = |arm: &str, outcome: &str| {
        predictions.iter().filter(|row| row["arm"] == arm && row["outcome"] == outcome).count()
    };
    assert_eq!([of("random", "fine-tuned"), of("random@50%", "fine-tuned")], [36, 0]);
    assert_eq!([of("random", "frozen"), of("random@50%", "frozen"), of("readout", "frozen")], [36, 36, 0]);

    // Nothing is computed again, another study is refused, and a watcher sees the end.
    let before = found(&out);
    let again = stdout(&gyrus(&folder, "study study.toml --out out").success());
    assert!(again.contains("84 trainings, 0 to go"), "{again}");
    assert_eq!(found(&out), before);
    let other = gyrus(&folder, "study study.toml --out out --set design.seeds=3").failure();
    let said = String::from_utf8(other.get_output().stderr.clone()).unwrap();
    assert!(said.contains("out: holds another study"), "{said}");
    let watched = stdout(&gyrus(&folder, "watch out").success());
    assert!(watched.starts_with("out: 84 of 84 trainings\n"), "{watched}");
    assert!(watched.contains("erase-50%                #################### 6/6"), "{watched}");
}

#[test]
fn an_external_cohort_shares_one_pretraining_and_more_modalities_are_an_arm() {
    let folder = folder(TWO);
    let shown = stdout(&gyrus(&folder, "study study.toml --out out").success());
    assert!(shown.contains("one pretraining serves all folds"), "{shown}");
    let out = folder.path().join("out");
    let names: Vec<String> = table(&out.join("table.tsv")).iter().map(|arm| arm["arm"].clone()).collect();
    assert_eq!(names, ["random", "multimodal", "scratch", "readout"]);
    let drawn = |arm: &str| table(&out.join(format!("runs/{arm}/seed-1/scans.tsv")));
    let subjects =
        |arm: &str| drawn(arm).iter().map(|row| row["subject"].clone()).collect::<BTreeSet<String>>();
    assert_eq!(subjects("random"), subjects("multimodal"));
    // A fifth of twelve people is kept out.
    assert_eq!(subjects("random").len(), 10);
    // A watcher of a single training sees its end, and comes back.
    let watched = stdout(&gyrus(&folder, "watch out/runs/random/seed-1/pretrain").success());
    assert!(watched.contains("update 4 (100 %), loss "), "{watched}");
}

#[test]
fn a_unit_that_fails_does_not_end_the_others_and_is_tried_again() {
    let folder = folder(TWO);
    let unit = folder.path().join("out/runs/scratch/seed-1");
    fs::create_dir_all(unit.join("test-2")).unwrap();
    let bad = unit.join("test-2/last.safetensors");
    fs::write(&bad, "no weights").unwrap();
    let failed = gyrus(&folder, "study study.toml --out out").code(3);
    let said = String::from_utf8(failed.get_output().stderr.clone()).unwrap();
    assert!(said.contains("scratch/seed-1 failed: ") && said.contains("last.safetensors"), "{said}");
    assert!(unit.join("failed.txt").exists());
    assert!(stdout(&gyrus(&folder, "watch out --once").success()).contains("7 of 8 trainings, 1 failed"));
    fs::remove_file(bad).unwrap();
    let shown = stdout(&gyrus(&folder, "study study.toml --out out").success());
    assert!(shown.contains("8 trainings, 1 to go") && !unit.join("failed.txt").exists(), "{shown}");
}

#[test]
fn a_study_that_is_killed_again_and_again_ends_in_the_same_tables() {
    let folder = folder(ONE);
    let time = || {
        let begun = Instant::now();
        gyrus(&folder, "study study.toml --out whole").success();
        begun.elapsed().as_secs_f64()
    };
    // All of it, and what a run takes that has nothing to do.
    let [whole, idle] = [time(), time()];
    let kills: u32 = std::env::var("GYRUS_KILLS").map_or(4, |n| n.parse().unwrap());
    let mut at_work = 0;
    for kill in 0..kills {
        let mut study = Command::new(env!("CARGO_BIN_EXE_gyrus"));
        study.current_dir(&folder).args(["study", "study.toml", "--out", "killed"]);
        let mut study = study.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Each gets on by another share of the work, all together by less than half of it.
        let share = f64::from((kill * 7 + 3) % kills + 1) / f64::from(kills * (kills + 1));
        thread::sleep(Duration::from_secs_f64(0.5 * idle + 0.8 * share * whole));
        at_work += u32::from(study.try_wait().unwrap().is_none());
        study.kill().unwrap();
        study.wait().unwrap();
    }
    assert!(at_work == kills, "only {at_work} of {kills} were still at work");
    gyrus(&folder, "study study.toml --out killed").success();
    let [whole, killed] = ["whole", "killed"].map(|out| found(&folder.path().join(out)));
    assert!(whole == killed, "a study that was killed found something else");
}
