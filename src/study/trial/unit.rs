//! One unit of a study: a pretraining, and everything that is made of it.
//!
//! A unit is a folder. Training in it goes on where it was stopped; when all is done `unit.json` is written, and a unit
//! that has one is never computed again.
use super::arm::{Arm, Kind};
use super::examples;
use super::pool::Draw;
use super::record::{Drawn, Provenance, RECORD, Reconstructed, Record, is_done};
use super::setup::{Setup, Unit};
use crate::data::Assignment;
use crate::error::OnFile;
use crate::file::{write_bytes, write_whole};
use crate::machine::Mat;
use crate::program::{Array, Arrays, Device, arrays};
use crate::study::arms::Tested;
use crate::study::{Error, probe};
use crate::train::config::Pretrain;
use crate::train::finetune::{HeldOut, finetune};
use crate::train::infer::Embedder;
use crate::train::pretrain::{Learn, pretrain};
use crate::train::reconstruct::Reconstructor;
use crate::train::samples::{Samples, Volumes};
use crate::train::{Checkpoint, Run, log, readout};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// Features of the cohort, a row for each scan of known age, by the frozen encoder.
pub const FEATURES: &str = "features.safetensors";
/// Points that a curve of losses is thinned to.
const POINTS: usize = 60;
/// What the masks of reconstructed scans are drawn by: the same for all arms.
pub(super) const MASKS: u64 = 0;

/// Computes a unit, or what is missing of it.
///
/// # Errors
/// Whatever stops it.
pub fn compute(setup: &Setup, unit: &Unit, device: &Device) -> Result<(), Error> {
    let folder = &setup.folder_of(unit);
    if is_done(folder) {
        return Ok(());
    }
    fs::create_dir_all(folder).on_file("create", folder)?;
    let begun = Instant::now();
    let work = Work { setup, unit, arm: &setup.arms[unit.arm], device, folder };
    let mut record = work.compute()?;
    record.seconds = begun.elapsed().as_secs_f64();
    let text = serde_json::to_string(&record).expect("a record is plain data");
    write_bytes(&folder.join(RECORD), text.as_bytes())?;
    if !setup.study.design.keep_models {
        remove_models(folder)?;
    }
    Ok(())
}

/// Removes the weights in `folder` and below, and TensorBoard's copy of the logs.
fn remove_models(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).on_file("read", folder)? {
        let path = entry.on_file("read", folder)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            remove_models(&path)?;
        } else if matches!(&*name, "model.safetensors" | "last.safetensors") || name.starts_with("events.out")
        {
            fs::remove_file(&path).on_file("remove", &path)?;
        }
    }
    Ok(())
}

/// A unit at work.
struct Work<'a> {
    setup: &'a Setup,
    unit: &'a Unit,
    arm: &'a Arm,
    device: &'a Device,
    folder: &'a Path,
}

impl Work<'_> {
    fn compute(&self) -> Result<Record, Error> {
        let Work { setup, unit, arm, .. } = *self;
        let draw = setup.draw(unit)?;
        let settings = setup.pretraining(&draw, unit.seed);
        let [scans, cohort] = match (&setup.multimodal, arm.kind) {
            (Some([scans, cohort]), Kind::Multimodal) => [scans, cohort],
            _ => [&setup.scans, &setup.cohort],
        };
        let trained_on = Samples::of(scans, &scans.modalities()).map_err(Error::Setup)?;
        let numbers = self.numbers(&draw, &trained_on)?;
        let mut record = Record {
            arm: arm.name.clone(),
            seed: unit.seed,
            folds: unit.folds.clone(),
            drawn: Drawn::of(&trained_on, &numbers),
            steps: 0,
            loss: Vec::new(),
            tuning_loss: Vec::new(),
            fine_tuned: Vec::new(),
            frozen: Vec::new(),
            reconstructed: Vec::new(),
            seconds: 0.0,
            provenance: Provenance {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                data: [scans, cohort].map(|cache| cache.hash().to_owned()).into(),
                split: setup.folds.hash(),
                drawn: trained_on.hash(&numbers),
                settings: setup.settings_hash(),
            },
        };
        let tested_on = Samples::of(cohort, &cohort.modalities()).map_err(Error::Setup)?;
        if arm.kind == Kind::Readout {
            record.fine_tuned = self.read_out(&tested_on, &settings)?;
            return Ok(record);
        }
        let mut pretrained = None;
        if arm.kind.pretrains() {
            let folder = self.folder.join("pretrain");
            let run = self.begin(&folder, &settings)?;
            record.steps = pretrain(scans, &settings, Learn::Samples(&numbers), run)?.steps;
            record.loss = losses(&folder)?;
            pretrained = Some(Checkpoint::read(&folder)?);
        }
        record.frozen = self.probe(&tested_on, pretrained.as_ref(), &settings)?;
        if let (Some(model), true) = (&pretrained, arm.kind != Kind::Multimodal) {
            record.reconstructed = self.reconstruct(model)?;
            if setup.units().first() == Some(unit) {
                examples::write(setup, unit, model, self.device)?;
            }
        }
        if !arm.kind.is_curve_point() {
            for &fold in &unit.folds {
                let folder = self.folder.join(format!("test-{fold}"));
                record.fine_tuned.extend(self.fine_tune(&tested_on, pretrained.as_ref(), fold, &folder)?);
                record.tuning_loss.push(losses(&folder)?);
            }
        }
        Ok(record)
    }

    /// A training in `folder` with `settings`, or the one that was begun there.
    fn begin<'a>(&'a self, folder: &'a Path, settings: &impl Serialize) -> Result<Run<'a>, Error> {
        fs::create_dir_all(folder).on_file("create", folder)?;
        let text = toml::to_string(settings).expect("settings are a struct of TOML's types");
        write_bytes(&folder.join("config.toml"), text.as_bytes())?;
        Ok(Run { device: self.device, folder, resume: true, shown: false })
    }

    /// The samples that are pretrained on, by number; they are listed in `scans.tsv`.
    fn numbers(&self, draw: &Draw<'_>, samples: &Samples<'_>) -> Result<Vec<usize>, Error> {
        let drawn = draw.samples(self.arm).map_err(Error::Setup)?;
        let numbers: Vec<usize> = if self.arm.kind == Kind::Multimodal {
            let visit = |n: usize| (&samples.scan(n).subject, &samples.scan(n).session);
            let number_of: BTreeMap<_, usize> = (0..samples.len()).rev().map(|n| (visit(n), n)).collect();
            let pool = &self.setup.scans.scans();
            let scan = |&row: &usize| &pool[row].scan;
            let there = drawn.iter().map(scan).filter_map(|s| number_of.get(&(&s.subject, &s.session)));
            there.copied().collect()
        } else {
            drawn
        };
        let path = self.folder.join("scans.tsv");
        write_whole(&path, |file| {
            writeln!(file, "subject\tpath")?;
            numbers.iter().try_for_each(|&n| {
                writeln!(file, "{}\t{}", samples.scan(n).subject, samples.scan(n).path.display())
            })
        })?;
        Ok(numbers)
    }

    /// Those of the cohort who are tested in `fold`, and those who are learned from.
    fn parts(&self, cohort: &Samples<'_>, fold: usize) -> [Vec<usize>; 2] {
        let aged = (0..cohort.len()).filter(|&n| cohort.age(n).is_some());
        let (tested, learned) =
            aged.partition(|&n| self.setup.fold_of(&cohort.scan(n).subject) == Some(fold));
        [tested, learned]
    }

    fn fine_tune(
        &self,
        cohort: &Samples<'_>,
        from: Option<&Checkpoint>,
        fold: usize,
        folder: &Path,
    ) -> Result<Vec<Tested>, Error> {
        let settings = self.setup.fine_tuning(self.unit.seed);
        let run = self.begin(folder, &settings)?;
        let path = folder.join("subjects.tsv");
        let [tested, learned] = self.parts(cohort, fold);
        let assignment = Assignment::test(cohort.subjects(&tested), cohort.subjects(&learned));
        assignment.write(&path)?;
        let tested = finetune(cohort.cache, from, &settings, HeldOut::Given(&assignment, &path), run)?;
        let scans = cohort.cache.scans();
        let row = |t: &crate::train::finetune::Tested| {
            let scan = &scans[t.row].scan;
            Some(self.tested(&scan.subject, &scan.path, f64::from(scan.age?), t.years, fold))
        };
        Ok(tested.iter().filter_map(row).collect())
    }

    fn tested(&self, subject: &str, scan: &Path, age: f64, prediction: f64, fold: usize) -> Tested {
        let (subject, scan) = (subject.to_owned(), scan.display().to_string());
        Tested { subject, scan, age, prediction, seed: self.unit.seed, fold }
    }

    /// Ages of those tested in the unit's folds, by what `predict` makes of training rows, their ages and test rows.
    fn by_rows(
        &self,
        cohort: &Samples<'_>,
        predict: impl Fn(&[usize], &[f64], &[usize]) -> Vec<f64>,
    ) -> Vec<Tested> {
        let age = |n: usize| f64::from(cohort.age(n).expect("parts have only scans of known age"));
        let of_fold = |&fold: &usize| {
            let [tested, learned] = self.parts(cohort, fold);
            let ages: Vec<f64> = learned.iter().map(|&n| age(n)).collect();
            let years = predict(&learned, &ages, &tested);
            let row = |(&n, years): (&usize, f64)| {
                self.tested(&cohort.scan(n).subject, &cohort.scan(n).path, age(n), years, fold)
            };
            tested.iter().zip(years).map(row).collect::<Vec<Tested>>()
        };
        self.unit.folds.iter().flat_map(of_fold).collect()
    }

    /// Ages by ridge regression on the features of the frozen encoder, which are written beside.
    fn probe(
        &self,
        cohort: &Samples<'_>,
        model: Option<&Checkpoint>,
        settings: &Pretrain,
    ) -> Result<Vec<Tested>, Error> {
        let mut embedder = match model {
            Some(model) => Embedder::new(model, self.device)?,
            None => {
                let mae = settings.model.mae(cohort.cache.modalities(), cohort.cache.grid());
                Embedder::untrained(&mae.map_err(Error::Setup)?.encoder, self.unit.seed, self.device)?
            }
        };
        let aged: Vec<usize> = (0..cohort.len()).filter(|&n| cohort.age(n).is_some()).collect();
        let heads: Vec<Volumes> = aged.iter().map(|&n| cohort.volumes_of(n)).collect();
        let features: BTreeMap<usize, Vec<f32>> =
            aged.iter().copied().zip(embedder.embed(&heads).map_err(crate::train::Error::from)?).collect();
        let width = features.values().next().map_or(0, Vec::len);
        let data: Vec<f32> = features.values().flatten().copied().collect();
        let array = Array { shape: vec![aged.len(), width], data };
        let scans: Vec<String> = aged.iter().map(|&n| cohort.scan(n).path.display().to_string()).collect();
        let card = serde_json::json!({ "scans": scans }).to_string();
        let path = self.folder.join(FEATURES);
        arrays::write(&path, &Arrays::from([("features".to_owned(), array)]), &card)
            .map_err(crate::train::Error::from)?;
        let rows = |numbers: &[usize]| -> Vec<f32> {
            numbers.iter().flat_map(|n| features[n].iter().copied()).collect()
        };
        Ok(self.by_rows(cohort, |learned, ages, tested| {
            let (train, test) = (rows(learned), rows(tested));
            let train = Mat::rows(&train, [learned.len(), width]);
            probe::predict_age(train, ages, Mat::rows(&test, [tested.len(), width]))
        }))
    }

    /// Ages by the closed-form readout of regional intensities.
    fn read_out(&self, cohort: &Samples<'_>, settings: &Pretrain) -> Result<Vec<Tested>, Error> {
        let mae = settings.model.mae(cohort.cache.modalities(), cohort.cache.grid());
        let encoder = mae.map_err(Error::Setup)?.encoder;
        let features: Vec<Vec<f32>> = (0..cohort.len())
            .into_par_iter()
            .map(|n| readout::features(&encoder, &cohort.volumes_of(n)))
            .collect();
        Ok(self.by_rows(cohort, |learned, ages, tested| {
            let rows: Vec<Vec<f32>> = learned.iter().map(|&n| features[n].clone()).collect();
            let readout = readout::fit(&rows, ages).readout;
            tested.iter().map(|&n| readout.years(&features[n])).collect()
        }))
    }

    /// How well the model fills in scans of people it has not seen, by tier.
    fn reconstruct(&self, model: &Checkpoint) -> Result<Vec<Reconstructed>, Error> {
        let setup = self.setup;
        let samples = Samples::of(&setup.scans, &setup.scans.modalities()).map_err(Error::Setup)?;
        let mut reconstructor = Reconstructor::new(model, self.device)?;
        let excluded = setup.excluded(self.unit);
        let mut all = Vec::new();
        for (i, member) in setup.pool.members.iter().enumerate() {
            if !excluded.contains(&member.subject) {
                continue;
            }
            for (sample, tiers) in setup.versions(i) {
                let head = samples.volumes_of(sample);
                // One mask for all versions of a scan.
                let made =
                    reconstructor.reconstruct(&head, MASKS, i as u32).map_err(crate::train::Error::from)?;
                let mse = made.into_iter().flatten().map(|made| made.mse).find(|mse| mse.is_finite());
                let subject = member.subject.clone();
                all.extend(mse.map(|mse| Reconstructed { subject, tiers, mse }));
            }
        }
        Ok(all)
    }
}

/// The losses that the training in `folder` has logged, thinned.
fn losses(folder: &Path) -> Result<Vec<[f64; 2]>, Error> {
    let loss = |line: &Value| Some([line["step"].as_f64()? + 1.0, line["loss"].as_f64()?]);
    let all: Vec<[f64; 2]> = log::lines(folder)?.iter().filter_map(loss).collect();
    let mean = |points: &[[f64; 2]]| {
        let last = points[points.len() - 1][0];
        [last, points.iter().map(|p| p[1]).sum::<f64>() / points.len() as f64]
    };
    Ok(all.chunks(all.len().div_ceil(POINTS).max(1)).map(mean).collect())
}
