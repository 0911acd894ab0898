//! Everything that the trainings of a study have in common.
use super::arm::Arm;
use super::design::Study;
use super::pool::{Draw, Pool};
use crate::data::{Assignment, Cache};
use crate::study::Error;
use crate::train::config::{Finetune, Pretrain, Training};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Everything that units have in common.
pub struct Setup {
    /// What was asked for.
    pub study: Study,
    /// The study's folder.
    pub folder: PathBuf,
    /// Its arms.
    pub arms: Vec<Arm>,
    /// Who can be pretrained on.
    pub pool: Pool,
    /// The volumes of the pool: T1w, as they are and distorted.
    pub scans: Cache,
    /// The T1w of those who are tested.
    pub cohort: Cache,
    /// All modalities of the pool and of the cohort, where there are several.
    pub multimodal: Option<[Cache; 2]>,
    /// The part of each subject of the cohort.
    pub folds: Assignment,
    /// The subjects of the pool who are the same person as one of the cohort.
    pub same: BTreeMap<String, BTreeSet<String>>,
    /// Subjects of the pool that are never pretrained on.
    pub reserved: BTreeSet<String>,
}

/// One pretraining and its tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Number of the arm.
    pub arm: usize,
    /// Which repeat.
    pub seed: u64,
    /// The folds that are tested, from 1.
    pub folds: Vec<usize>,
}

impl Setup {
    /// All units, so ordered that a study that is stopped has compared all arms on what it has done.
    pub fn units(&self) -> Vec<Unit> {
        let folds: Vec<usize> = (1..=self.study.design.folds).collect();
        let groups: Vec<Vec<usize>> =
            if self.per_fold() { folds.into_iter().map(|fold| vec![fold]).collect() } else { vec![folds] };
        let seeds = 1..=self.study.design.seeds;
        let units = seeds.flat_map(|seed| groups.iter().map(move |folds| (seed, folds)));
        units
            .flat_map(|(seed, folds)| {
                (0..self.arms.len()).map(move |arm| Unit { arm, seed, folds: folds.clone() })
            })
            .collect()
    }

    /// Whether people of the cohort are in the pool: then each fold has a pretraining of its own, without those that it
    /// tests.
    pub fn per_fold(&self) -> bool {
        !self.same.is_empty()
    }

    /// What a unit is called: its folder within `runs`.
    pub fn name_of(&self, unit: &Unit) -> String {
        let runs = self.folder.join("runs");
        let folder = self.folder_of(unit);
        folder.strip_prefix(&runs).unwrap_or(&folder).display().to_string()
    }

    /// Where a unit is computed.
    pub fn folder_of(&self, unit: &Unit) -> PathBuf {
        let seed = format!("seed-{}", unit.seed);
        let folder = self.folder.join("runs").join(&self.arms[unit.arm].name).join(seed);
        if self.per_fold() { folder.join(format!("fold-{}", unit.folds[0])) } else { folder }
    }

    /// People of the pool that a unit tests or keeps out.
    pub fn excluded(&self, unit: &Unit) -> BTreeSet<String> {
        if !self.per_fold() {
            return self.reserved.clone();
        }
        let tested = |subject: &str| self.fold_of(subject).is_some_and(|fold| unit.folds.contains(&fold));
        self.same.iter().filter(|(subject, _)| tested(subject)).flat_map(|(_, pool)| pool.clone()).collect()
    }

    /// What a unit's arms are drawn from.
    ///
    /// # Errors
    /// Too few scans.
    pub fn draw(&self, unit: &Unit) -> Result<Draw<'_>, Error> {
        let draw = self.pool.draw(&self.study.design, &self.excluded(unit), unit.seed);
        draw.map_err(Error::Setup)
    }

    /// Settings of pretraining: the same number of updates and the same batch for all arms.
    pub fn pretraining(&self, draw: &Draw<'_>, seed: u64) -> Pretrain {
        let mut settings = self.study.pretrain.clone();
        let smallest = self.study.design.curve.iter().fold(1.0, |least: f64, share| least.min(*share));
        let fewest = ((smallest * draw.scans() as f64).round() as usize).max(1);
        let train = &mut settings.train;
        train.batch = train.batch.min(fewest);
        if train.steps == 0 {
            let an_epoch = (draw.scans() / (train.batch * train.accumulate)).max(1);
            train.steps = (train.epochs * an_epoch) as u64;
        }
        *train = Training { seed, validation: 0.0, patience: 0, ..*train };
        settings
    }

    /// Settings of fine-tuning.
    pub fn fine_tuning(&self, seed: u64) -> Finetune {
        let mut settings = self.study.finetune.clone();
        (settings.model, settings.train.seed) = (self.study.pretrain.model, seed);
        settings
    }

    /// The fold that tests `subject`, from 1; `None` for those who are not tested.
    pub(super) fn fold_of(&self, subject: &str) -> Option<usize> {
        self.folds.part_of(subject)?.strip_prefix("fold-")?.parse().ok()
    }

    /// BLAKE3 of the settings, in hexadecimal.
    pub(super) fn settings_hash(&self) -> String {
        let text = toml::to_string(&self.study).expect("a study is a struct of TOML's types");
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    /// The samples of member number `i`, as it is and distorted, with the names of the tiers that each belongs to.
    pub fn versions(&self, i: usize) -> Vec<(usize, Vec<String>)> {
        let member = &self.pool.members[i];
        let graded = self.study.grading.iter().zip(&member.tiers);
        let tiers = graded.filter_map(|(g, tier)| Some(format!("{}: {}", g.name, g.tiers[(*tier)?])));
        let as_it_is = (member.sample, std::iter::once("as it is".to_owned()).chain(tiers).collect());
        let severities = self.study.distortion.tiers.iter().zip(&member.copies);
        let copies = severities.filter_map(|(severity, copy)| Some(((*copy)?, vec![severity.name()])));
        std::iter::once(as_it_is).chain(copies).collect()
    }
}
