//! What a study asks: the file that says which scans are pretrained on, how they are sorted into tiers, who is tested.
use crate::image::Preprocessing;
use crate::quality::GRADES;
use crate::train::config::{Finetune, Pretrain};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A study, as `STUDY.toml` says it; `gyrus study --defaults` prints one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// What the report is called.
    pub title: String,
    /// Synthetic datasets to be made.
    pub phantom: Vec<Phantom>,
    /// What is pretrained on: a BIDS folder, FOMO-style tree or manifest, or the name of a phantom.
    pub pretraining: Source,
    /// Who is fine-tuned and tested on: the same, with ages.
    pub cohort: Source,
    /// Ways to sort the scans as they are into tiers.
    pub grading: Vec<Grading>,
    /// Tiers made on purpose.
    pub distortion: Distortion,
    /// How arms are compared.
    pub design: Design,
    /// How scans are prepared.
    pub prepare: Prepare,
    /// Settings of `gyrus pretrain`, for all arms.
    pub pretrain: Pretrain,
    /// Settings of `gyrus finetune`, for all arms.
    pub finetune: Finetune,
}

/// A synthetic dataset, as `gyrus phantom` makes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phantom {
    /// What it is called.
    pub name: String,
    /// How many people.
    pub subjects: u32,
    /// Seed from which they follow.
    pub seed: u64,
    /// Typical edge of a voxel, mm.
    #[serde(default = "two")]
    pub spacing: f64,
    /// How much people differ beside their age, as a multiple of the usual.
    #[serde(default = "one")]
    pub variation: f32,
    /// Share of the people without the PET, where the study has one.
    #[serde(default)]
    pub missing: f64,
}

fn one() -> f32 {
    1.0
}

fn two() -> f64 {
    2.0
}

/// A dataset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Where it is, from the study's file; or the name of a phantom.
    pub dataset: PathBuf,
}

/// A way to sort scans into tiers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grading {
    /// What it is called; arms are called by it and the tier.
    pub name: String,
    /// What is sorted by: `score` or `grade` of `gyrus qc`, or a column of ratings, more being better.
    pub by: String,
    /// The table with that column, e.g. of MRIQC; participants.tsv of the dataset without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<PathBuf>,
    /// Less is better in that column.
    #[serde(default)]
    pub less_is_better: bool,
    /// Names of the tiers from the worst to the best: equal parts by rank. For `grade`, names of grades.
    pub tiers: Vec<String>,
}

/// Scans made worse on purpose.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distortion {
    /// Levels of `gyrus distort`, 1 to 4, or files with recipes; each is a tier.
    pub tiers: Vec<Severity>,
    /// Shares of distorted scans in mixtures with scans as they are.
    pub mixtures: Vec<f64>,
    /// The tier that mixtures take; the last without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixed_with: Option<String>,
    /// Seed of the distortions.
    pub seed: u64,
}

/// How severely scans are distorted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Severity {
    /// A level of `gyrus distort`.
    Level(u8),
    /// A recipe's file.
    Recipe(PathBuf),
}

impl Severity {
    /// What the tier is called: `level-3`, or as the file.
    pub fn name(&self) -> String {
        match self {
            Severity::Level(level) => format!("level-{level}"),
            Severity::Recipe(path) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }
}

/// How arms are compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Design {
    /// Times that everything is repeated: other scans are drawn, other first weights, other masks.
    pub seeds: u64,
    /// Parts that the cohort is tested in, disjoint by subject and alike in age.
    pub folds: usize,
    /// Scans that each arm is pretrained on; 0 for as many as every tier has with the same ages and sites.
    pub scans: usize,
    /// Parts that ages are matched in between tiers.
    pub age_bins: usize,
    /// Shares of its scans that each tier is pretrained on once more, for learning curves (probed, not fine-tuned).
    pub curve: Vec<f64>,
    /// Share of the pretraining subjects that are kept out to reconstruct, where no fold does that.
    pub reserve: f64,
    /// A table of who is one person under two names (as for `gyrus data --same-subject`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_subject: Option<PathBuf>,
    /// Whether every trained model is kept.
    pub keep_models: bool,
}

/// How scans are prepared; see `gyrus prepare`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// Voxels along x, y and z.
    pub grid: [usize; 3],
    /// Millimetres between voxels; 0 to stretch every brain to the grid.
    pub spacing: f64,
    /// What else is seen beside the T1w; then there is an arm that is pretrained and fine-tuned on all of it.
    pub modalities: Vec<String>,
}

impl Default for Study {
    fn default() -> Self {
        // An arm has to stand on what its network learned: a readout of intensities would be the same in all of them.
        let finetune = Finetune { readout: false, ..Finetune::default() };
        let grid = Preprocessing::default().grid;
        Study {
            title: "Does low-quality data help or harm pretraining?".into(),
            phantom: Vec::new(),
            pretraining: Source::default(),
            cohort: Source::default(),
            grading: Vec::new(),
            distortion: Distortion::default(),
            design: Design {
                seeds: 3,
                folds: 5,
                scans: 0,
                age_bins: 3,
                curve: Vec::new(),
                reserve: 0.1,
                same_subject: None,
                keep_models: false,
            },
            prepare: Prepare { grid, spacing: 0.0, modalities: vec!["T1w".into()] },
            pretrain: Pretrain::default(),
            finetune,
        }
    }
}

/// Keys that no default shows, as [`crate::train::settings::layer`] wants them.
pub const OPTIONAL: [&str; 2] = ["distortion.mixed_with", "design.same_subject"];

impl Study {
    /// The same with all files named from `folder`, where the study's file lies; phantoms keep their names.
    pub fn resolved(mut self, folder: &Path) -> Study {
        let phantoms: BTreeSet<PathBuf> = self.phantom.iter().map(|p| PathBuf::from(&p.name)).collect();
        let resolve = |path: &mut PathBuf| {
            if !path.as_os_str().is_empty() && !phantoms.contains(path) {
                let from = folder.join(&*path);
                *path = from.canonicalize().unwrap_or(from);
            }
        };
        [&mut self.pretraining.dataset, &mut self.cohort.dataset].into_iter().for_each(resolve);
        self.grading.iter_mut().filter_map(|g| g.table.as_mut()).for_each(resolve);
        self.design.same_subject.iter_mut().for_each(resolve);
        for tier in &mut self.distortion.tiers {
            if let Severity::Recipe(path) = tier {
                resolve(path);
            }
        }
        self
    }

    /// Refuses what no study can be; `Err` names the key.
    pub fn check(&self) -> Result<(), String> {
        for (key, source) in [("pretraining", &self.pretraining), ("cohort", &self.cohort)] {
            if source.dataset.as_os_str().is_empty() {
                return Err(format!(
                    "{key}.dataset is missing: a folder, a manifest, or the name of a phantom"
                ));
            }
        }
        let Design { seeds, folds, age_bins, curve, reserve, .. } = &self.design;
        if *seeds == 0 || *age_bins == 0 {
            return Err("design.seeds and design.age_bins must be at least 1".into());
        }
        if *folds < 2 {
            return Err(format!("design.folds = {folds} must be at least 2"));
        }
        let part = |x: &f64| *x > 0.0 && *x < 1.0;
        if !curve.iter().all(part) || !self.distortion.mixtures.iter().all(part) {
            return Err("design.curve and distortion.mixtures are shares, above 0 and below 1".into());
        }
        if !(0.0..0.9).contains(reserve) {
            return Err(format!("design.reserve = {reserve} must be at least 0 and below 0.9"));
        }
        for grading in &self.grading {
            let Grading { name, by, tiers, .. } = grading;
            if tiers.len() < 2 {
                return Err(format!("grading \"{name}\": tiers needs two names at least"));
            }
            if let Some(tier) =
                tiers.iter().find(|t| by == "grade" && GRADES.iter().all(|g| g.to_string() != **t))
            {
                return Err(format!("grading \"{name}\": \"{tier}\" is no grade; they are {GRADES:?}"));
            }
        }
        if let Some(Severity::Level(level)) = self
            .distortion
            .tiers
            .iter()
            .find(|t| matches!(t, Severity::Level(level) if !(1..=4).contains(level)))
        {
            return Err(format!("distortion.tiers: there is no level {level}; they are 1 to 4"));
        }
        let names: Vec<String> = self.distortion.tiers.iter().map(Severity::name).collect();
        let mixed = self.distortion.mixed_with.as_ref();
        if let Some(mixed) = mixed.filter(|m| !names.contains(m)) {
            return Err(format!("distortion.mixed_with = \"{mixed}\" is none of the tiers {names:?}"));
        }
        if !self.distortion.mixtures.is_empty() && names.is_empty() {
            return Err("distortion.mixtures needs distortion.tiers to mix with".into());
        }
        if self.prepare.modalities.first().is_none_or(|m| m != "T1w") {
            return Err("prepare.modalities must begin with T1w".into());
        }
        let mut arms = BTreeSet::new();
        if let Some(twice) = self.arms().into_iter().find(|arm| !arms.insert(arm.name.clone())) {
            return Err(format!("two arms would be called \"{}\": rename a grading or a tier", twice.name));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn study() -> Study {
        let grading = Grading {
            name: "rating".into(),
            by: "quality_rating".into(),
            table: None,
            less_is_better: false,
            tiers: vec!["low".into(), "high".into()],
        };
        let distortion = Distortion {
            tiers: vec![Severity::Level(1), Severity::Recipe("erase.toml".into())],
            mixtures: vec![0.5],
            ..Distortion::default()
        };
        let source = |name: &str| Source { dataset: name.into() };
        Study {
            pretraining: source("heads"),
            cohort: source("heads"),
            grading: vec![grading],
            distortion,
            ..Study::default()
        }
    }

    #[test]
    fn arms_are_tiers_mixtures_and_what_they_are_compared_with() {
        let mut study = study();
        study.prepare.modalities.push("PET-FDG".into());
        study.design.curve = vec![0.5];
        study.check().unwrap();
        let names: Vec<String> = study.arms().into_iter().map(|arm| arm.name).collect();
        let expected = "random rating-low rating-high level-1 erase erase-50% all multimodal scratch readout \
                        random@50% rating-low@50% rating-high@50% level-1@50% erase@50%";
        assert_eq!(names.join(" "), expected);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let refused = |change: &dyn Fn(&mut Study)| {
            let mut study = study();
            change(&mut study);
            study.check().unwrap_err()
        };
        assert!(refused(&|s| s.cohort.dataset = PathBuf::new()).contains("cohort.dataset"));
        assert!(refused(&|s| s.design.folds = 1).contains("design.folds"));
        assert!(refused(&|s| s.distortion.mixtures = vec![1.0]).contains("mixtures"));
        assert!(refused(&|s| s.distortion.mixed_with = Some("level-2".into())).contains("level-2"));
        assert!(refused(&|s| s.distortion.tiers = vec![Severity::Level(5)]).contains("level 5"));
        assert!(refused(&|s| s.grading[0].by = "grade".into()).contains("\"low\" is no grade"));
        let twice = refused(&|s| s.grading.push(s.grading[0].clone()));
        assert!(twice.contains("two arms would be called \"rating-low\""), "{twice}");
    }

    #[test]
    fn files_are_named_from_the_studys_folder_and_phantoms_are_not() {
        let mut study = study();
        study.phantom.push(Phantom {
            name: "heads".into(),
            subjects: 4,
            seed: 1,
            spacing: 4.0,
            variation: 1.0,
            missing: 0.0,
        });
        study.cohort.dataset = "people".into();
        let study = study.resolved(Path::new("/somewhere"));
        assert_eq!(study.pretraining.dataset, Path::new("heads"));
        assert_eq!(study.cohort.dataset, Path::new("/somewhere/people"));
        assert_eq!(study.distortion.tiers[1], Severity::Recipe("/somewhere/erase.toml".into()));
    }
}
