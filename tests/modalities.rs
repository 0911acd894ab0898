//! Several modalities as a user prepares them: synthetic people with T2w and PET, some without, on one grid each.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use assert_cmd::assert::Assert;
use gyrus::{
    data::{Cache, Visit},
    image::{self, BACKGROUND, Storage},
};
use std::{fs, path::Path};

mod command;
use command::gyrus;

fn said(assert: &Assert) -> String {
    let output = assert.get_output();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

const PHANTOM: &str =
    "phantom --out heads --subjects 6 --spacing 4 --modalities T1w,T2w,PET-FDG --missing 0.34";
const PREPARE: &str = "prepare heads --grid 32 40 32 --spacing 5 --modalities T1w,T2w,PET-FDG --out";

/// Pearson's, of two volumes within a brain.
fn correlation(pairs: &[(f64, f64)]) -> f64 {
    let n = pairs.len() as f64;
    let (mx, my) = (pairs.iter().map(|p| p.0).sum::<f64>() / n, pairs.iter().map(|p| p.1).sum::<f64>() / n);
    let sum = |f: fn(f64, f64) -> f64| pairs.iter().map(|&(x, y)| f(x - mx, y - my)).sum::<f64>();
    sum(|x, y| x * y) / (sum(|x, _| x * x) * sum(|_, y| y * y)).sqrt()
}

#[test]
fn visits_lie_on_one_grid_and_missing_scans_are_absent() {
    let folder = tempfile::tempdir().unwrap();
    gyrus(&folder, PHANTOM).success();
    let at = |name: &str| folder.path().join(name);
    let pets = (1..=6).filter(|i| at(&format!("heads/sub-00{i}/pet/sub-00{i}_trc-FDG_pet.json")).exists());
    assert_eq!(pets.count(), 4);

    // T1w images are those of a dataset without the others, to the byte.
    gyrus(&folder, "phantom --out plain --subjects 6 --spacing 4").success();
    let t1w = "sub-004/anat/sub-004_T1w.nii.gz";
    assert!(fs::read(at("heads").join(t1w)).unwrap() == fs::read(at("plain").join(t1w)).unwrap());

    let made = said(&gyrus(&folder, &format!("{PREPARE} cache")).success());
    assert!(made.contains("T1w 6, T2w 6, PET-FDG 4"), "{made}");
    assert!(made.contains("PET: 4 divided by the mean of the brain, which makes no SUVR"), "{made}");
    let again = said(&gyrus(&folder, &format!("{PREPARE} cache")).success());
    assert!(again.contains("is up to date, 16 volumes") && again.contains("PET: 4 divided"), "{again}");
    let other = said(&gyrus(&folder, "prepare heads --grid 32 40 32 --spacing 5 --out cache").code(1));
    assert!(other.contains("other modalities, T1w,T2w,PET-FDG"), "{other}");

    let cache = Cache::open(&at("cache")).unwrap();
    assert_eq!(cache.modalities(), ["T1w", "T2w", "PET-FDG"]);
    let visits = cache.visits();
    assert_eq!(visits.len(), 6);
    assert_eq!(visits.iter().filter(|v| v.rows[2].is_none()).count(), 2);

    gyrus(&folder, "prepare heads --grid 32 40 32 --spacing 5 --out alone").success();
    let alone = Cache::open(&at("alone")).unwrap();
    assert_eq!((alone.modalities(), alone.visits().len()), (vec!["T1w".to_owned()], 6));
    for (i, Visit { subject, session, rows }) in visits.iter().enumerate() {
        assert_eq!((subject.clone(), session), (format!("sub-00{}", i + 1), &None));
        let t1w = cache.volume(rows[0].unwrap());
        assert!(t1w == alone.volume(i), "{subject}");
        for &row in rows.iter().skip(1).flatten() {
            let (volume, known) = (cache.volume(row), &cache.scans()[row]);
            let placed = known.placed.as_ref().unwrap();
            assert_eq!(placed.t1w, Path::new(&format!("{subject}/anat/{subject}_T1w.nii.gz")));
            assert!(known.measured.stats.warnings.is_empty(), "{:?}", known.measured.stats.warnings);
            assert_eq!(known.scan.age, cache.scans()[rows[0].unwrap()].scan.age);
            let pairs: Vec<(f64, f64)> =
                t1w.iter().zip(volume).map(|(a, b)| (a.to_f64(), b.to_f64())).collect();
            let background = f64::from(BACKGROUND);
            assert!(pairs.iter().all(|p| p.0 > background || p.1 == background), "beyond the T1w's brain");
            let inside: Vec<(f64, f64)> =
                pairs.into_iter().filter(|p| p.0 > background && p.1 > background).collect();
            // T2w is dark where T1w is bright; PET is dark in fluid, bright in grey matter, and between in white.
            let pet = known.scan.modality == "PET-FDG";
            if pet {
                let uptake = |from: f64, to: f64| {
                    let here: Vec<f64> =
                        inside.iter().filter(|p| from < p.0 && p.0 < to).map(|p| p.1).collect();
                    here.iter().sum::<f64>() / here.len() as f64
                };
                let [fluid, grey, white] = [uptake(-4.0, -1.8), uptake(-0.8, 0.0), uptake(0.9, 4.0)];
                println!("{subject}: {fluid:.2} {grey:.2} {white:.2} {:?}", placed.alignment);
                assert!(fluid < grey && white < grey, "{subject}: {fluid} {grey} {white}");
            } else {
                assert!(correlation(&inside) < -0.6, "{subject}: {}", correlation(&inside));
            }
            if pet {
                let mean = inside.iter().map(|p| p.1).sum::<f64>() / inside.len() as f64;
                assert!(mean.abs() < 0.02 && !placed.reference.unwrap().region, "{mean}");
            }
        }
    }
    let second = cache.scans().iter().filter(|s| s.scan.modality == "T2w");
    let shared = second.filter(|s| s.placed.as_ref().unwrap().alignment.is_none()).count();
    assert!((1..6).contains(&shared), "some share the T1w's voxels, others do not: {shared}");
}

#[test]
fn a_reference_region_makes_ratios_and_without_a_t1w_nothing_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let line = "phantom --out heads --subjects 3 --spacing 5 --modalities PET-FDG";
    gyrus(&folder, line).success();
    let at = |name: &str| folder.path().join(name);
    // The left half of the brain of two of them as their region.
    for subject in ["sub-001", "sub-002"] {
        let anat = at(&format!("heads/derivatives/phantom/{subject}/anat"));
        let (_, mut mask) = image::read(&anat.join(format!("{subject}_desc-brain_mask.nii.gz"))).unwrap();
        let [nx, ny, _] = mask.shape;
        for (i, v) in mask.data.iter_mut().enumerate() {
            let voxel = [i % nx, i / nx % ny, i / (nx * ny)];
            let x: f64 =
                (0..3).map(|c| mask.affine[0][c] * (voxel[c] as f64 - mask.shape[c] as f64 / 2.0)).sum();
            *v = if x < 0.0 { *v } else { 0.0 };
        }
        image::write(&anat.join(format!("{subject}_label-pons_mask.nii.gz")), &mask, Storage::U8).unwrap();
    }
    let prepare = "prepare heads --grid 32 40 32 --spacing 5 --modalities PET-FDG --out";
    let made = said(&gyrus(&folder, &format!("{prepare} ratios --reference-mask pons")).code(3));
    assert!(made.contains("PET: 2 divided by the mean of the reference region (SUVR)"), "{made}");
    assert!(made.contains("sub-003_trc-FDG_pet.nii.gz: no file *_label-pons_mask.nii.gz"), "{made}");
    let (ratios, brain) = (Cache::open(&at("ratios")).unwrap(), {
        gyrus(&folder, &format!("{prepare} brain")).success();
        Cache::open(&at("brain")).unwrap()
    });
    assert_eq!((ratios.len(), brain.len()), (2, 3));
    assert_eq!(ratios.visits()[0].rows, [Some(0)]);
    for row in 0..2 {
        let reference = |cache: &Cache| cache.scans()[row].placed.clone().unwrap().reference.unwrap();
        let (region, whole) = (reference(&ratios), reference(&brain));
        assert!(region.region && !whole.region);
        assert!((region.mean / whole.mean - 1.0).abs() < 0.1, "half the brain: {region:?} {whole:?}");
        // One image by two references: value = mean (stored / 2 + 1).
        for (a, b) in ratios.volume(row).iter().zip(brain.volume(row)) {
            if a.to_f32() > BACKGROUND && a.to_f64() < 3.9 && b.to_f64() < 3.9 {
                let value = |stored: f64, mean: f64| mean * (0.5 * stored + 1.0);
                let (x, y) = (value(a.to_f64(), region.mean), value(b.to_f64(), whole.mean));
                assert!((x - y).abs() < 0.01 * whole.mean, "{x} {y}");
            }
        }
    }

    fs::remove_dir_all(at("heads/sub-002/anat")).unwrap();
    let made = said(&gyrus(&folder, &format!("{prepare} two")).code(3));
    assert!(made.contains("no session of sub-002 has a T1w to bring it to"), "{made}");
    let said = said(&gyrus(&folder, "prepare heads --modalities T1w,T1w --out x").code(1));
    assert!(said.contains("each only once"), "{said}");
}

/// Pretraining, fine-tuning and prediction with a modality that some people lack.
#[test]
fn a_model_of_two_modalities_learns_and_takes_either() {
    let folder = tempfile::tempdir().unwrap();
    gyrus(&folder, "phantom --out heads --subjects 10 --spacing 6 --modalities T1w,PET-FDG --missing 0.3")
        .success();
    let prepare = "prepare heads --grid 16 16 16 --spacing 12 --modalities";
    gyrus(&folder, &format!("{prepare} T1w,PET-FDG --out both")).success();
    gyrus(&folder, &format!("{prepare} T1w --out t1w")).success();
    let small = "--set model.patch=8 --set train.batch=5 --set train.warmup_epochs=1";
    let pretrain = format!("pretrain both {small} --set patches=foreground --set train.validation=0");
    gyrus(&folder, &format!("{pretrain} --set train.epochs=40 --out mae")).success();

    let log = fs::read_to_string(folder.path().join("mae/metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    for part in ["loss/T1w", "loss/PET-FDG"] {
        let values: Vec<f64> = lines.iter().filter_map(|line| line[part].as_f64()).collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (first, last) = (mean(&values[..5]), mean(&values[values.len() - 5..]));
        assert!(last < 0.9 * first, "{part}: {first} to {last}");
    }

    let weights = said(&gyrus(&folder, &format!("{pretrain} --set modality_weights=[1] --out no")).code(1));
    assert!(weights.contains("one for each of T1w, PET-FDG"), "{weights}");
    let finetune = "--from mae --set train.batch=4 --set train.epochs=2 --folds 2 --out";
    gyrus(&folder, &format!("finetune both {finetune} age")).success();
    gyrus(&folder, &format!("finetune t1w {finetune} from-t1w")).success();
    gyrus(&folder, "predict age both -o both.csv").success();
    gyrus(&folder, "predict age t1w -o t1w.csv").success();
    let ages = |table: &str| -> Vec<f64> {
        let text = fs::read_to_string(folder.path().join(table)).unwrap();
        text.lines().skip(1).map(|l| l.split(',').nth(4).unwrap().parse().unwrap()).collect()
    };
    let (both, t1w) = (ages("both.csv"), ages("t1w.csv"));
    assert_eq!([both.len(), t1w.len()], [10; 2]);
    let same = both.iter().zip(&t1w).filter(|(a, b)| (*a - *b).abs() < 1e-6).count();
    assert_eq!(same, 3, "three people have no PET, so nothing else is shown of them");
    gyrus(&folder, "reconstruct mae both --out pictures").success();
    gyrus(&folder, "embed mae both --out features.csv").success();

    // Without a cache: a folder and a table are put together as it is, a file is seen alone.
    gyrus(&folder, "predict age heads -o folder.csv").success();
    assert_eq!(ages("folder.csv"), both);
    let heads = folder.path().join("heads");
    let mut table = "path,mask,subject,modality,tracer\n".to_owned();
    let mut pets = Vec::new();
    for subject in (1..=10).map(|i| format!("sub-{i:03}")) {
        let mask = format!("derivatives/phantom/{subject}/anat/{subject}_desc-brain_mask.nii.gz");
        table += &format!("{subject}/anat/{subject}_T1w.nii.gz,{mask},{subject},T1w,\n");
        let pet = format!("{subject}/pet/{subject}_trc-FDG_pet.nii.gz");
        if heads.join(&pet).exists() {
            table += &format!("{pet},,{subject},PET,FDG\n");
            pets.push(pet);
        }
    }
    fs::write(heads.join("table.csv"), table).unwrap();
    gyrus(&folder, "predict age heads/table.csv -o table.csv").success();
    assert_eq!(ages("table.csv"), both);
    let file = "predict age heads/sub-003/anat/sub-003_T1w.nii.gz -o file.csv";
    let alone = said(&gyrus(&folder, file).success());
    assert!(alone.contains("only the T1w is seen"), "{alone}");
    assert_eq!(ages("file.csv"), t1w[2..3]);
    let pet = said(&gyrus(&folder, &format!("predict age heads/{} -o no.csv", pets[0])).code(3));
    assert!(pet.contains("no T1w scans; there are: PET-FDG"), "{pet}");
    gyrus(&folder, "reconstruct mae heads --out drawn --count 3").success();
    gyrus(&folder, "embed mae heads --out folder-features.csv").success();
    let features = |name: &str| -> Vec<String> {
        let text = fs::read_to_string(folder.path().join(name)).unwrap();
        text.lines().map(|l| l.split_once(",sub-").map_or(l, |(_, rest)| rest).to_owned()).collect()
    };
    assert!(features("features.csv").len() == 11);
    assert!(features("features.csv") == features("folder-features.csv"));

    // A PET that cannot be read does not stop its T1w.
    fs::write(heads.join(&pets[0]), b"no image").unwrap();
    let broken = said(&gyrus(&folder, "predict age heads -o broken.csv").code(3));
    assert!(broken.contains(&pets[0]), "{broken}");
    let broken = ages("broken.csv");
    assert_eq!(broken.iter().zip(&t1w).filter(|(a, b)| (*a - *b).abs() < 1e-6).count(), 4);
}
