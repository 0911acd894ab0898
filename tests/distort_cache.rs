//! `gyrus distort` of a prepared cache: deterministic, within the brain, and near to distorting the dataset before.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use assert_cmd::assert::Assert;
use gyrus::{data::Cache, image::BACKGROUND};
use std::fs;
use tempfile::TempDir;

mod command;
use command::gyrus;

fn said(assert: &Assert) -> String {
    let output = assert.get_output();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn open(folder: &TempDir, name: &str) -> Cache {
    Cache::open(&folder.path().join(name)).unwrap()
}

fn volume(cache: &Cache, row: usize) -> Vec<f64> {
    cache.volume(row).iter().map(|v| v.to_f64()).collect()
}

fn is_brain(v: f64) -> bool {
    v > f64::from(BACKGROUND)
}

/// The values of several volumes where all have brain.
fn inside<const N: usize>(volumes: [&[f64]; N]) -> Vec<[f64; N]> {
    let voxels = (0..volumes[0].len()).map(|i| volumes.map(|v| v[i]));
    voxels.filter(|values| values.iter().all(|&v| is_brain(v))).collect()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

fn sd(values: &[f64]) -> f64 {
    let middle = mean(values.iter().copied());
    mean(values.iter().map(|v| (v - middle).powi(2))).sqrt()
}

/// Pearson's.
fn correlation(pairs: &[[f64; 2]]) -> f64 {
    let [x, y] = [0, 1].map(|i| pairs.iter().map(|p| p[i]).collect::<Vec<_>>());
    let (mx, my) = (mean(x.iter().copied()), mean(y.iter().copied()));
    mean(pairs.iter().map(|[x, y]| (x - mx) * (y - my))) / (sd(&x) * sd(&y))
}

const GRID: &str = "--grid 32 40 32";

/// `subjects` heads of `spacing` mm, and a cache of them.
fn heads(subjects: u32, spacing: u32) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    gyrus(&folder, &format!("phantom --out heads --subjects {subjects} --spacing {spacing}")).success();
    gyrus(&folder, &format!("prepare heads --out cache {GRID}")).success();
    folder
}

#[test]
fn a_distorted_cache_is_the_same_again_worse_by_level_and_within_the_brain() {
    let folder = heads(3, 4);
    let at = |name: &str| folder.path().join(name);
    let before = fs::read(at("cache/volumes.npy")).unwrap();
    for level in 1..=4 {
        let made = said(&gyrus(&folder, &format!("distort cache --level {level} --out c{level}")).success());
        assert!(made.contains("is made, 3 volumes, 3 of them distorted"), "{made}");
    }
    gyrus(&folder, "distort cache --level 4 --out again").success();
    for file in ["volumes.npy", "scans.tsv", "distortions.json", "cache.json"] {
        assert!(
            fs::read(at("c4").join(file)).unwrap() == fs::read(at("again").join(file)).unwrap(),
            "{file}"
        );
    }
    assert!(fs::read(at("cache/volumes.npy")).unwrap() == before);
    let table = |name: &str| fs::read_to_string(at(name).join("scans.tsv")).unwrap();
    assert_eq!(table("c1").lines().next(), table("cache").lines().next());

    let caches = ["cache", "c1", "c2", "c3", "c4"].map(|name| open(&folder, name));
    let hashes = caches.each_ref().map(|c| c.hash().to_owned());
    assert!((0..5).all(|i| !hashes[..i].contains(&hashes[i])));
    assert!(caches[0].distortion().is_none());
    assert_eq!(caches[4].distortion().unwrap()["Level"], "4");
    for (cache, hash) in caches[1..].iter().zip(&hashes[1..]) {
        assert_eq!(cache.preprocessing(), caches[0].preprocessing());
        assert_eq!(cache.distortion().unwrap()["Of"], hashes[0].as_str(), "{hash}");
        assert_ne!(cache.fingerprint(), caches[0].fingerprint());
    }
    for row in 0..3 {
        let volumes = caches.each_ref().map(|c| volume(c, row));
        let change = |level: usize| {
            let both = inside([&volumes[0], &volumes[level]]);
            mean(both.iter().map(|[a, b]| (a - b).abs()))
        };
        let changes = [1, 2, 3, 4].map(change);
        println!("row {row}: mean change {changes:.3?}");
        assert!(changes[0] > 0.01 && changes[3] > 2.0 * changes[0], "{changes:?}");
        for (level, now) in volumes.iter().enumerate().skip(1) {
            let here = |v: &[f64]| v.iter().map(|&v| is_brain(v)).collect::<Vec<_>>();
            let (mask, kept) = (here(&volumes[0]), here(now));
            // Only a field of view that was cut takes brain away.
            assert!(level == 4 || kept == mask, "level {level}");
            assert!(kept.iter().zip(&mask).all(|(k, m)| *m || !k), "level {level}");
            let brain: Vec<f64> = now.iter().copied().filter(|&v| is_brain(v)).collect();
            assert!(mean(brain.iter().copied()).abs() < 0.01 && (sd(&brain) - 1.0).abs() < 0.01);
            let [old, new] = [&caches[0], &caches[level]].map(|c| &c.scans()[row]);
            assert_eq!((&new.scan, &new.measured.blake3), (&old.scan, &old.measured.blake3));
            let share = brain.len() as f64 / mask.iter().filter(|m| **m).count() as f64;
            let [old, new] = [old, new].map(|row| row.measured.traits);
            assert!((new.brain_ml / old.brain_ml - share).abs() < 1e-6 && share > 0.4, "{share}");
            assert!((new.foreground / old.foreground - share).abs() < 1e-6);
        }
    }
}

#[test]
fn a_distorted_cache_trains_is_told_apart_and_keeps_what_was_not_chosen() {
    let folder = heads(4, 6);
    let half = "distort cache --level 2 --share 0.5 --out half";
    let made = said(&gyrus(&folder, half).success());
    assert!(made.contains("4 volumes, 2 of them distorted"), "{made}");
    assert!(said(&gyrus(&folder, half).success()).contains("is up to date"));
    for other in ["distort cache --level 3 --share 0.5 --out half", "distort cache --level 2 --out cache"] {
        let refused = said(&gyrus(&folder, other).code(1));
        assert!(refused.contains("other distortions, or none; give another --out"), "{refused}");
    }
    assert!(said(&gyrus(&folder, "distort cache --level 1 --out heads").code(1)).contains("already holds"));
    let refused = said(&gyrus(&folder, &format!("prepare heads --out half {GRID}")).code(1));
    assert!(refused.contains("a cache made with `gyrus distort`"), "{refused}");
    let shown = said(&gyrus(&folder, "data half").success());
    assert!(shown.contains("level 2, seed 0, share 0.5"), "{shown}");

    // The same people as in the dataset.
    gyrus(&folder, "distort heads --level 2 --share 0.5 --out worse").success();
    let people = fs::read_to_string(folder.path().join("worse/participants.tsv")).unwrap();
    let (cache, distorted) = (open(&folder, "cache"), open(&folder, "half"));
    for row in 0..4 {
        let subject = &cache.scans()[row].scan.subject;
        let line = people.lines().find(|line| line.starts_with(subject)).unwrap();
        assert_eq!(cache.volume(row) == distorted.volume(row), line.ends_with("\t0"), "{line}");
    }

    // A run that was stopped: files, but no card.
    fs::remove_file(folder.path().join("half/cache.json")).unwrap();
    fs::write(folder.path().join("half/.unfinished-abc"), b"part").unwrap();
    assert!(said(&gyrus(&folder, half).success()).contains("is made"));
    assert_eq!(open(&folder, "half").hash(), distorted.hash());
    assert!(!folder.path().join("half/.unfinished-abc").exists());

    let small = "--set model.patch=8 --set train.batch=4 --set train.epochs=1 --set train.warmup_epochs=0";
    gyrus(&folder, &format!("pretrain half {small} --set train.validation=0 --out mae")).success();
}

#[test]
fn other_modalities_are_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    gyrus(&folder, "phantom --out heads --subjects 2 --spacing 6 --modalities T1w,T2w").success();
    gyrus(&folder, &format!("prepare heads --out both {GRID} --modalities T1w,T2w")).success();
    gyrus(&folder, &format!("prepare heads --out t2w {GRID} --modalities T2w")).success();
    let made = said(&gyrus(&folder, "distort both --level 1 --out worse").success());
    assert!(made.contains("2 volumes of other modalities than T1w are as they were"), "{made}");
    let (before, after) = (open(&folder, "both"), open(&folder, "worse"));
    for row in 0..4 {
        let same = before.volume(row) == after.volume(row);
        assert_eq!(same, before.scans()[row].scan.modality == "T2w");
        assert_eq!(before.scans()[row].placed, after.scans()[row].placed);
    }
    let refused = said(&gyrus(&folder, "distort t2w --level 1 --out no").code(1));
    assert!(refused.contains("has no T1w, which alone is distorted, but T2w"), "{refused}");
}

/// Both ways from a dataset to a distorted cache.
#[test]
fn distorting_before_and_after_preparing_come_near_to_each_other() {
    let folder = heads(3, 2);
    fs::write(folder.path().join("bias.toml"), "[bias_field]\nsd = 0.2\n").unwrap();
    fs::write(folder.path().join("noise.toml"), "[noise]\nsigma = 0.03\n").unwrap();
    for (name, how) in
        [("bias", "--recipe bias.toml"), ("noise", "--recipe noise.toml"), ("both", "--level 1")]
    {
        gyrus(&folder, &format!("distort heads {how} --out {name}")).success();
        gyrus(&folder, &format!("prepare {name} --out {name}-before {GRID}")).success();
        gyrus(&folder, &format!("distort cache {how} --out {name}-after")).success();
    }
    let plain = open(&folder, "cache");
    let of = |name: &str| [open(&folder, &format!("{name}-before")), open(&folder, &format!("{name}-after"))];
    let (bias, noise, both) = (of("bias"), of("noise"), of("both"));
    for row in 0..3 {
        let own = volume(&plain, row);
        let changes = |caches: &[Cache; 2]| {
            let [before, after] = caches.each_ref().map(|c| volume(c, row));
            let all = inside([&own, &before, &after]);
            all.into_iter().map(|[own, before, after]| [before - own, after - own]).collect::<Vec<_>>()
        };
        let field = correlation(&changes(&bias));
        let grain = changes(&noise);
        let [before, after] = [0, 1].map(|i| sd(&grain.iter().map(|c| c[i]).collect::<Vec<_>>()));
        let [a, b] = both.each_ref().map(|c| volume(c, row));
        let whole = correlation(&inside([&a, &b]));
        println!("row {row}: fields {field:.3}, noise {before:.4} and {after:.4}, level 1 {whole:.4}");
        assert!(field > 0.95, "{field}");
        assert!((0.7..1.4).contains(&(after / before)), "{before} {after}");
        assert!(whole > 0.99, "{whole}");
    }
}
