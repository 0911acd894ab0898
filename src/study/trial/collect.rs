//! From the records of a study's units to its results.
use super::arm::{Arm as Asked, Kind};
use super::record::{Record, done};
use super::results::{self, Arm, ByTier, Compared, CurvePoint, Outcome, Results};
use super::schedule::FAILED;
use super::setup::{Setup, Unit};
use super::{answer, examples};
use crate::data::stem;
use crate::error::OnFile;
use crate::quality::graded::{Graded, graded};
use crate::study::Error;
use crate::study::arms::{Summary, Tested, summary};
use crate::study::bootstrap::{Estimate, mean_over_subjects};
use crate::study::comparison::{self, Comparison, holm};
use crate::study::gap::{self, Correction};
use crate::study::statistics::{correlation, mean};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The bootstrap's and the permutations' seed: fixed, so that a table always has the same numbers.
pub(super) const SEED: u64 = 0;
/// Differences are claimed below this.
const ALPHA: f64 = 0.05;

/// What the study has found so far.
///
/// # Errors
/// Records that cannot be read.
pub fn collect(setup: &Setup) -> Result<Results, Error> {
    let units = setup.units();
    let mut found = Found { setup, records: Vec::new(), failed: Vec::new(), graded: cohort_grades(setup)? };
    for unit in &units {
        let folder = setup.folder_of(unit);
        if let Some(record) = done(&folder)? {
            found.records.push((unit.clone(), record));
        } else if folder.join(FAILED).exists() {
            let path = folder.join(FAILED);
            found.failed.push((setup.name_of(unit), fs::read_to_string(&path).on_file("read", &path)?));
        }
    }
    let arms: Vec<Arm> = setup.arms.iter().enumerate().filter_map(|(a, asked)| found.arm(a, asked)).collect();
    let comparisons =
        [Outcome::FineTuned, Outcome::Frozen].map(|outcome| found.comparisons(outcome)).concat();
    let mut results = Results {
        title: setup.study.title.clone(),
        answer: String::new(),
        reading: Vec::new(),
        design: found.design(),
        done: [found.records.len(), units.len()],
        arms,
        mean_predictor: found.mean_predictor(),
        comparisons,
        reconstruction: found.reconstruction(),
        curves: found.curves(),
        knowledge: found.knowledge()?,
        gaps: found.gaps(),
        examples: examples::read(&setup.folder)?,
        provenance: found.provenance(),
        failed: found.failed,
    };
    results.answer = answer::answer(setup, &results);
    results.reading = answer::reading(setup, &results);
    Ok(results)
}

/// What `gyrus qc` says of the cohort's scans, by subject and stem of the file's name.
fn cohort_grades(setup: &Setup) -> Result<BTreeMap<(String, String), Graded>, Error> {
    let path = setup.folder.join("data").join("qc-cohort").join("qc.tsv");
    let key = |g: Graded| ((g.subject.clone(), stem(&g.path)), g);
    Ok(graded(&path).map_err(Error::Setup)?.into_iter().map(key).collect())
}

/// All that is known of a study.
pub(super) struct Found<'a> {
    pub(super) setup: &'a Setup,
    pub(super) records: Vec<(Unit, Record)>,
    failed: Vec<(String, String)>,
    /// Of the cohort's scans, by subject and stem of the file's name.
    graded: BTreeMap<(String, String), Graded>,
}

impl Found<'_> {
    fn of_arm(&self, arm: usize) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |(unit, _)| unit.arm == arm).map(|(_, record)| record)
    }

    fn rows(&self, arm: usize, outcome: Outcome) -> Vec<Tested> {
        let of = |record: &Record| match outcome {
            Outcome::FineTuned => record.fine_tuned.clone(),
            Outcome::Frozen => record.frozen.clone(),
        };
        self.of_arm(arm).flat_map(of).collect()
    }

    /// What `gyrus qc` says of a scan of the cohort.
    pub(super) fn graded(&self, subject: &str, scan: &Path) -> Option<&Graded> {
        self.graded.get(&(subject.to_owned(), stem(scan)))
    }

    fn arm(&self, a: usize, asked: &Asked) -> Option<Arm> {
        let records: Vec<&Record> = self.of_arm(a).collect();
        if records.is_empty() || asked.kind.is_curve_point() {
            return None;
        }
        let of = |f: fn(&Record) -> f64| mean(&records.iter().map(|r| f(r)).collect::<Vec<f64>>());
        let ages: Vec<[f64; 2]> = records.iter().filter_map(|r| r.drawn.age).collect();
        let age = |i: usize| mean(&ages.iter().map(|age| age[i]).collect::<Vec<f64>>());
        let [fine_tuned, frozen] = [Outcome::FineTuned, Outcome::Frozen].map(|outcome| self.rows(a, outcome));
        let summary = |rows: &[Tested]| (!rows.is_empty()).then(|| summary(rows, SEED));
        let curves: Vec<&[[f64; 2]]> = records.iter().map(|r| r.loss.as_slice()).collect();
        let tuning: Vec<&[[f64; 2]]> =
            records.iter().flat_map(|r| &r.tuning_loss).map(Vec::as_slice).collect();
        Some(Arm {
            name: asked.name.clone(),
            label: asked.label.clone(),
            scans: of(|r| r.drawn.scans as f64),
            subjects: of(|r| r.drawn.subjects as f64),
            age: (!ages.is_empty()).then(|| [age(0), age(1)]),
            steps: records.iter().map(|r| r.steps).max().unwrap_or(0),
            fine_tuned: summary(&fine_tuned),
            frozen: summary(&frozen),
            points: over_seeds(&fine_tuned).iter().map(|row| [row.age, row.prediction]).collect(),
            loss: mean_curve(&curves),
            tuning_loss: mean_curve(&tuning),
            by_grade: self.by_grade(&fine_tuned),
        })
    }

    fn by_grade(&self, rows: &[Tested]) -> Vec<(String, usize, Estimate)> {
        let mut grades: BTreeMap<&str, Vec<&Tested>> = BTreeMap::new();
        for row in rows {
            if let Some(graded) = self.graded(&row.subject, Path::new(&row.scan)) {
                grades.entry(&graded.grade).or_default().push(row);
            }
        }
        let of = |(grade, rows): (&str, Vec<&Tested>)| {
            let scans: BTreeSet<&str> = rows.iter().map(|row| row.scan.as_str()).collect();
            let errors = rows.iter().map(|row| (row.subject.as_str(), (row.prediction - row.age).abs()));
            (grade.to_owned(), scans.len(), mean_over_subjects(errors, SEED))
        };
        grades.into_iter().map(of).collect()
    }

    /// Who is compared with whom: every arm with the reference, and of each grading the worst tier with the best.
    fn pairs(&self) -> Vec<(usize, usize)> {
        let arms = &self.setup.arms;
        let compared = |kind: Kind| !kind.is_curve_point() && kind.has_network();
        let with_reference = (1..arms.len()).filter(|&a| compared(arms[a].kind)).map(|a| (a, 0));
        let tiers = self.setup.study.grading.iter().enumerate().filter_map(|(g, grading)| {
            let of = |t: usize| {
                let kind = Kind::Tier { grading: g, tier: t, share: 1.0 };
                arms.iter().position(|arm| arm.kind == kind)
            };
            Some((of(0)?, of(grading.tiers.len() - 1)?))
        });
        with_reference.chain(tiers).collect()
    }

    fn comparisons(&self, outcome: Outcome) -> Vec<Compared> {
        let arms = &self.setup.arms;
        let unit = if self.setup.per_fold() { comparison::Unit::SeedAndFold } else { comparison::Unit::Seed };
        let compare = |(a, b): (usize, usize)| -> Option<(usize, usize, Comparison)> {
            let [first, second] = [a, b].map(|arm| self.rows(arm, outcome));
            Some((a, b, comparison::compare(&first, &second, unit, SEED).ok()?))
        };
        let made: Vec<(usize, usize, Comparison)> = self.pairs().into_iter().filter_map(compare).collect();
        let corrected = holm(&made.iter().map(|(.., c)| c.p).collect::<Vec<f64>>());
        let compared = |((a, b, comparison), p_holm): ((usize, usize, Comparison), f64)| Compared {
            arm: arms[a].name.clone(),
            with: arms[b].name.clone(),
            outcome,
            comparison,
            p_holm,
            shown: p_holm < ALPHA,
        };
        made.into_iter().zip(corrected).map(compared).collect()
    }

    /// For each tested scan the mean age of those who were learned from.
    fn mean_predictor(&self) -> Option<Summary> {
        let rows: Vec<Tested> = over_seeds(&self.rows(0, Outcome::FineTuned));
        let mut learned: BTreeMap<usize, f64> = BTreeMap::new();
        for fold in rows.iter().map(|row| row.fold).collect::<BTreeSet<_>>() {
            let ages: Vec<f64> = rows.iter().filter(|row| row.fold != fold).map(|row| row.age).collect();
            learned.insert(fold, mean(&ages));
        }
        let predict = |row: Tested| Tested { prediction: learned[&row.fold], ..row };
        let rows: Vec<Tested> =
            rows.into_iter().map(predict).filter(|row| row.prediction.is_finite()).collect();
        (!rows.is_empty()).then(|| summary(&rows, SEED))
    }

    fn reconstruction(&self) -> Vec<ByTier> {
        let mut all = Vec::new();
        for (a, arm) in self.setup.arms.iter().enumerate().filter(|(_, arm)| !arm.kind.is_curve_point()) {
            let mut tiers: BTreeMap<&str, Vec<(&str, f64)>> = BTreeMap::new();
            let mut order = Vec::new();
            for made in self.of_arm(a).flat_map(|record| &record.reconstructed) {
                for tier in &made.tiers {
                    let rows = tiers.entry(tier).or_insert_with(|| {
                        order.push(tier.as_str());
                        Vec::new()
                    });
                    rows.push((made.subject.as_str(), made.mse));
                }
            }
            for tier in order {
                let rows = &tiers[tier];
                let scans = rows.iter().map(|(subject, _)| subject).collect::<BTreeSet<_>>().len();
                let mse = mean_over_subjects(rows.iter().copied(), SEED);
                all.push(ByTier { arm: arm.name.clone(), tier: tier.to_owned(), scans, mse });
            }
        }
        all
    }

    fn curves(&self) -> Vec<CurvePoint> {
        let arms = &self.setup.arms;
        let has_curve = |whole: Kind| arms.iter().any(|a| a.kind.is_curve_point() && a.kind.whole() == whole);
        let point = |(a, arm): (usize, &Asked)| {
            let whole = arms.iter().find(|other| other.kind == arm.kind.whole())?;
            let rows = self.rows(a, Outcome::Frozen);
            if !has_curve(whole.kind) || rows.is_empty() {
                return None;
            }
            let scans: Vec<f64> = self.of_arm(a).map(|record| record.drawn.scans as f64).collect();
            let mae = summary(&rows, SEED).mae;
            Some(CurvePoint { arm: whole.name.clone(), scans: mean(&scans), mae })
        };
        let points = arms.iter().enumerate().filter_map(point);
        let mut points: Vec<CurvePoint> = points.collect();
        points.sort_by(|a, b| a.arm.cmp(&b.arm).then(a.scans.total_cmp(&b.scans)));
        points
    }

    fn gaps(&self) -> Vec<results::Gap> {
        let mut all = Vec::new();
        for (a, arm) in self.setup.arms.iter().enumerate() {
            let rows = self.rows(a, Outcome::FineTuned);
            if rows.is_empty() {
                continue;
            }
            let corrections =
                [("raw", Correction::None), ("Cole", Correction::Cole), ("Beheshti", Correction::Beheshti)];
            for (name, correction) in corrections {
                // Too flat or too few to be corrected: there is no such line then.
                let Ok(gaps) = gap::gaps(&rows, correction) else { continue };
                all.push(self.gap(&arm.name, name, &gaps));
            }
        }
        all
    }

    fn gap(&self, arm: &str, correction: &str, gaps: &[gap::Gap]) -> results::Gap {
        let of = |f: fn(&gap::Gap) -> f64| gaps.iter().map(f).collect::<Vec<f64>>();
        let measured: Vec<gap::Measured<'_>> = gaps
            .iter()
            .filter_map(|g| {
                let quality = self.graded(&g.subject, Path::new(&g.scan))?.score;
                Some(gap::Measured { subject: &g.subject, age: g.age, gap: g.gap, quality })
            })
            .collect();
        let differs = measured.windows(2).any(|pair| pair[0].quality != pair[1].quality);
        let quality_slope = (measured.len() >= 10 && differs).then(|| gap::dependence(&measured, SEED).slope);
        let cohort = self.setup.cohort.scans();
        let group_of: BTreeMap<&str, &str> = cohort
            .iter()
            .filter_map(|row| Some((row.scan.subject.as_str(), row.scan.group.as_deref()?)))
            .collect();
        let grouped: Vec<(&str, &str, f64)> = gaps
            .iter()
            .filter_map(|g| Some((*group_of.get(g.subject.as_str())?, g.subject.as_str(), g.gap)))
            .collect();
        results::Gap {
            arm: arm.to_owned(),
            correction: correction.to_owned(),
            mean: mean(&of(|g| g.gap)),
            age_r: correlation(&of(|g| g.age), &of(|g| g.gap)),
            quality_slope,
            groups: gap::by_group(&grouped, SEED).into_iter().map(|g| (g.name, g.subjects, g.gap)).collect(),
        }
    }

    fn design(&self) -> Vec<(String, String)> {
        let (setup, study) = (self.setup, &self.setup.study);
        let reference: Vec<&Record> = self.of_arm(0).collect();
        let scans: BTreeSet<usize> = reference.iter().map(|r| r.drawn.scans).collect();
        let range = match (scans.first(), scans.last()) {
            (Some(least), Some(most)) if least != most => {
                format!("{least} to {most}, the same for all in a fold")
            }
            (Some(all), _) => all.to_string(),
            _ => "none yet".into(),
        };
        let matched = format!("sites, and ages in {} parts", study.design.age_bins);
        let kept_apart = if setup.per_fold() {
            format!(
                "{} of the tested people are also in the pretraining data; the model that tests them is never \
                 pretrained on them",
                setup.same.len()
            )
        } else {
            "nobody who is tested is in the pretraining data".into()
        };
        let model = study.pretrain.model;
        let [x, y, z] = study.prepare.grid;
        let facts = [
            ("pretraining data", study.pretraining.dataset.display().to_string()),
            ("tested on", study.cohort.dataset.display().to_string()),
            ("scans in each arm", range),
            ("matched between arms", matched),
            ("updates of pretraining", reference.first().map_or("none yet".into(), |r| r.steps.to_string())),
            ("seeds", study.design.seeds.to_string()),
            ("folds", study.design.folds.to_string()),
            ("overlap", kept_apart),
            ("model", format!("{:?}, patches of {}³ voxels", model.preset, model.patch)),
            (
                "volumes",
                format!(
                    "{x}x{y}x{z} voxels of about {:.1} mm",
                    setup.scans.preprocessing().nominal_spacing()
                ),
            ),
        ];
        facts.into_iter().map(|(what, value)| (what.to_owned(), value)).collect()
    }

    fn provenance(&self) -> Vec<(String, String)> {
        let mut facts = Vec::new();
        let all = |of: &dyn Fn(&Record) -> String| {
            let values: BTreeSet<String> = self.records.iter().map(|(_, record)| of(record)).collect();
            values.into_iter().collect::<Vec<_>>().join(", ")
        };
        let mut fact = |what: &str, value: String| facts.push((what.to_owned(), value));
        fact("gyrus", all(&|r| r.provenance.version.clone()));
        fact("settings (BLAKE3 of study.toml)", all(&|r| r.provenance.settings.clone()));
        fact("folds (BLAKE3)", all(&|r| r.provenance.split.clone()));
        let caches: BTreeSet<&String> = self.records.iter().flat_map(|(_, r)| &r.provenance.data).collect();
        fact("caches (BLAKE3)", caches.into_iter().map(String::as_str).collect::<Vec<_>>().join(", "));
        fact("again", format!("gyrus study {} --out FOLDER", self.setup.folder.join("study.toml").display()));
        facts
    }
}

/// Each scan once, with the mean over seeds of what was predicted for it.
fn over_seeds(rows: &[Tested]) -> Vec<Tested> {
    let mut scans: BTreeMap<(&str, &str), Vec<&Tested>> = BTreeMap::new();
    rows.iter().for_each(|row| scans.entry((&row.subject, &row.scan)).or_default().push(row));
    let of = |rows: Vec<&Tested>| {
        let prediction = mean(&rows.iter().map(|row| row.prediction).collect::<Vec<f64>>());
        Tested { prediction, seed: 0, ..rows[0].clone() }
    };
    scans.into_values().map(of).collect()
}

/// The mean of curves at the points of the shortest.
fn mean_curve(curves: &[&[[f64; 2]]]) -> Vec<[f64; 2]> {
    let shortest = curves.iter().map(|curve| curve.len()).min().unwrap_or(0);
    let point = |i: usize| [0, 1].map(|axis| mean(&curves.iter().map(|c| c[i][axis]).collect::<Vec<f64>>()));
    (0..shortest).map(point).collect()
}
