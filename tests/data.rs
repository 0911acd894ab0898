//! A dataset becomes a cache: with a file that is broken, after a run that was stopped, and on real heads.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use gyrus::{
    data::{self, Cache, Error, Report, phantom::Cohort},
    image::{BACKGROUND, Preprocessing},
};
use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

fn settings() -> Preprocessing {
    Preprocessing { grid: [32, 40, 32], spacing: Some(5.0), ..Preprocessing::default() }
}

fn prepare(dataset: &Path, out: &Path) -> Result<Report, Error> {
    data::prepare(dataset, out, &settings(), |_| (), || ())
}

fn t1w() -> [String; 1] {
    ["T1w".into()]
}

/// Five synthetic heads of coarse voxels.
fn heads(folder: &Path) -> PathBuf {
    let out = folder.join("heads");
    let cohort = Cohort { subjects: 5, seed: 3, spacing: 4.0, ..Cohort::default() };
    cohort.write(&out, || ()).expect("a fresh folder can be written");
    out
}

const FILES: [&str; 3] = ["volumes.npy", "scans.tsv", "cache.json"];

fn bytes(cache: &Path) -> Vec<Vec<u8>> {
    FILES.iter().map(|f| fs::read(cache.join(f)).expect("the cache is whole")).collect()
}

#[test]
fn a_broken_scan_is_reported_and_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = heads(folder.path());
    let image = dataset.join("sub-003/anat/sub-003_T1w.nii.gz");
    let good = fs::read(&image).unwrap();
    fs::write(&image, &good[..good.len() / 2]).unwrap();

    let out = folder.path().join("cache");
    let report = prepare(&dataset, &out).unwrap();
    assert_eq!((report.prepared, report.untouched), (4, false));
    assert_eq!(report.skipped.len(), 1);
    assert_eq!(report.skipped[0].source, Path::new("sub-003/anat/sub-003_T1w.nii.gz"));

    let cache = Cache::open(&out).unwrap();
    let subjects: Vec<&str> = cache.scans().iter().map(|s| s.scan.subject.as_str()).collect();
    assert_eq!(subjects, ["sub-001", "sub-002", "sub-004", "sub-005"]);
    assert_eq!((cache.len(), cache.grid()), (4, [32, 40, 32]));
    assert!(!out.join(".parts").exists());
    // Again: the same scans, with the same one broken, are up to date.
    let again = prepare(&dataset, &out).unwrap();
    assert!(again.untouched && again.skipped == report.skipped);
    // Repaired, it is missing from the cache, which must not go unnoticed.
    fs::write(&image, good).unwrap();
    assert!(matches!(prepare(&dataset, &out), Err(Error::CacheDiffers { .. })));
}

#[test]
fn a_cache_holds_what_preparing_a_scan_gives() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = heads(folder.path());
    let out = folder.path().join("cache");
    prepare(&dataset, &out).unwrap();
    let cache = Cache::open(&out).unwrap();
    for (row, scan) in data::scans(&dataset, &t1w()).unwrap().scans.iter().enumerate() {
        assert!(scan.mask.is_some() && scan.age.is_some() && scan.sex.is_some());
        let prepared = data::prepare_scan(scan, cache.preprocessing()).unwrap();
        let index = &cache.scans()[row];
        assert_eq!((index.row, index.scan.age, index.scan.sex), (row, scan.age, scan.sex));
        assert_eq!(index.measured.stats, prepared.stats);
        assert!(cache.fingerprint().unusual(&index.measured.traits).is_empty());
        for (half, &full) in cache.volume(row).iter().zip(&prepared.data) {
            assert!((half.to_f32() - full).abs() <= 2e-3, "{half} for {full}");
            assert_eq!(half.to_f32() > BACKGROUND, full > BACKGROUND);
        }
    }
}

#[test]
fn a_stopped_run_goes_on_where_it_was_and_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = heads(folder.path());
    let whole = folder.path().join("whole");
    prepare(&dataset, &whole).unwrap();

    // Stopped after two scans: a panic in the third is as sudden as a kill.
    let out = folder.path().join("cache");
    let done = AtomicUsize::new(0);
    let stop = || assert!(done.fetch_add(1, Ordering::SeqCst) < 2, "stopped");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let run = || pool.install(|| data::prepare(&dataset, &out, &settings(), |_| (), stop));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
    let parts = || {
        let list = fs::read_dir(out.join(".parts")).unwrap().map(|e| e.unwrap());
        list.filter(|e| e.path().extension().is_some_and(|x| x == "f16"))
            .map(|e| (e.path(), e.metadata().unwrap().modified().unwrap()))
            .collect::<Vec<_>>()
    };
    assert!((2..5).contains(&parts().len()), "{:?}", parts());
    assert!(matches!(Cache::open(&out), Err(Error::File(_))), "an unfinished cache does not open");

    // What the first run finished is not made again: spoilt voxels of the right length survive.
    let (spoilt, _) = parts().remove(0);
    let length = fs::metadata(&spoilt).unwrap().len() as usize;
    let good = fs::read(&spoilt).unwrap();
    fs::write(&spoilt, vec![0x3c; length]).unwrap();
    prepare(&dataset, &out).unwrap();
    let volumes = fs::read(out.join("volumes.npy")).unwrap();
    let expected = fs::read(whole.join("volumes.npy")).unwrap();
    let different = volumes.iter().zip(&expected).filter(|(a, b)| a != b).count();
    assert!(volumes.len() == expected.len() && different > length / 4 && different <= length);
    assert_ne!(good, vec![0x3c; length]);

    // And without the spoiling, stopped and whole runs agree to the byte.
    fs::remove_dir_all(&out).unwrap();
    done.store(0, Ordering::SeqCst);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
    prepare(&dataset, &out).unwrap();
    for (file, (here, there)) in FILES.iter().zip(bytes(&out).into_iter().zip(bytes(&whole))) {
        assert!(here == there, "{file} differs");
    }
    assert_eq!(Cache::open(&out).unwrap().hash(), Cache::open(&whole).unwrap().hash());
}

#[test]
fn other_settings_or_scans_are_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = heads(folder.path());
    let out = folder.path().join("cache");
    prepare(&dataset, &out).unwrap();
    let refused = |result: Result<Report, Error>, word: &str| {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(word) && text.contains("--out"), "{text}");
    };
    let finer = Preprocessing { spacing: Some(4.0), ..settings() };
    refused(data::prepare(&dataset, &out, &finer, |_| (), || ()), "other settings");

    let table = dataset.join("participants.tsv");
    let ages = fs::read_to_string(&table).unwrap();
    fs::write(&table, ages.replace("sub-002", "sub-092")).unwrap();
    refused(prepare(&dataset, &out), "sub-002");
    fs::write(&table, &ages).unwrap();
    fs::remove_dir_all(dataset.join("sub-004")).unwrap();
    refused(prepare(&dataset, &out), "more scans");
}

#[test]
fn damaged_caches_do_not_open() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = heads(folder.path());
    let out = folder.path().join("cache");
    prepare(&dataset, &out).unwrap();
    for (file, from, to) in [
        ("cache.json", "\"format\": 1", "\"format\": 7"),
        ("cache.json", "\"count\": 5", "\"count\": 4"),
        ("cache.json", "\"background\": -4.0", "\"background\": 0.0"),
        ("cache.json", "}", ""),
        ("scans.tsv", "\tblake3\t", "\thash\t"),
    ] {
        let path = out.join(file);
        let good = fs::read_to_string(&path).unwrap();
        assert!(good.contains(from), "{from}");
        fs::write(&path, good.replace(from, to)).unwrap();
        let error = Cache::open(&out).unwrap_err().to_string();
        assert!(error.contains(file) || error.contains("scans.tsv"), "{error}");
        fs::write(&path, good).unwrap();
    }
    let volumes = out.join("volumes.npy");
    let good = fs::read(&volumes).unwrap();
    fs::write(&volumes, &good[..good.len() - 2]).unwrap();
    assert!(Cache::open(&out).unwrap_err().to_string().contains("volumes.npy"));
    fs::write(&volumes, &good).unwrap();
    Cache::open(&out).unwrap();
}

#[test]
fn a_dataset_without_usable_scans_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("cache");
    let error = prepare(folder.path(), &out).unwrap_err();
    assert!(matches!(error, Error::NoScans { .. }), "{error}");
    let manifest = folder.path().join("list.csv");
    fs::write(&manifest, "path\nnowhere.nii.gz\n").unwrap();
    let Err(Error::AllFailed { skipped, .. }) = prepare(&manifest, &out) else { panic!("nothing is there") };
    assert!(skipped[0].reason.contains("nowhere.nii.gz"), "{}", skipped[0].reason);
}

/// The folder with real scans, if this machine has it.
fn real_heads() -> Option<PathBuf> {
    let shared = env::var_os("GYRUS_SHARED").map(PathBuf::from);
    let shared = shared.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    let folder = shared.join("data/ixi-2mm");
    if !folder.exists() {
        println!("skipped: no {}", folder.display());
        return None;
    }
    Some(folder)
}

#[test]
fn real_heads_have_masks_and_fit_the_grid() {
    let Some(dataset) = real_heads() else { return };
    let scans = data::scans(&dataset, &t1w()).unwrap().scans;
    assert_eq!(scans.len(), 124);
    assert!(scans.iter().all(|s| s.mask.is_some() && s.quality.is_some()));
    assert_eq!(scans.iter().filter(|s| s.age.is_some()).count(), 120);
    for scan in scans.iter().step_by(31) {
        let prepared = data::prepare_scan(scan, &Preprocessing::default()).unwrap();
        assert!(prepared.stats.warnings.is_empty(), "{}: {:?}", scan.subject, prepared.stats.warnings);
    }
}
