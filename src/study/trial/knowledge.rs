//! What else than age can be read from frozen features: site and quality.
use super::collect::{Found, SEED};
use super::results::Knowledge;
use super::setup::Unit;
use super::unit::FEATURES;
use crate::data::Scan;
use crate::machine::Mat;
use crate::program::arrays;
use crate::study::Error;
use crate::study::probe::{self, HeldOut};
use crate::study::statistics::{mean, median};
use crate::train;
use std::collections::{BTreeMap, BTreeSet};

/// What is asked of a scan.
type Value<'a> = &'a dyn Fn(&Scan) -> Option<f64>;

/// A scan with a row of features: its row, itself, its fold.
type Known<'a> = (usize, &'a Scan, usize);

fn people<'a>(of: &[Known<'a>]) -> Vec<HeldOut<'a>> {
    of.iter().map(|&(_, scan, fold)| HeldOut { subject: &scan.subject, fold }).collect()
}

impl Found<'_> {
    /// What frozen features tell of site and quality, where these are known and differ.
    pub(super) fn knowledge(&self) -> Result<Vec<Knowledge>, Error> {
        let mut all = Vec::new();
        for (a, arm) in self.setup.arms.iter().enumerate() {
            if arm.kind.is_curve_point() || !arm.kind.has_network() {
                continue;
            }
            let mut said: BTreeMap<(String, &str), Vec<[f64; 3]>> = BTreeMap::new();
            // One seed's units tell it: each asks hundreds of ridge regressions.
            for (unit, _) in self.records.iter().filter(|(unit, _)| unit.arm == a && unit.seed == 1) {
                self.ask(unit, &mut said)?;
            }
            for ((what, measure), values) in said {
                let of = |i: usize| values.iter().map(|v| v[i]).collect::<Vec<f64>>();
                let p = Some(median(&of(2))).filter(|p| p.is_finite());
                let (arm, measure) = (arm.name.clone(), measure.to_owned());
                all.push(Knowledge { arm, what, measure, value: mean(&of(0)), chance: mean(&of(1)), p });
            }
        }
        Ok(all)
    }

    /// Asks the features of one unit: (value, chance, p) by what is asked and how it is measured.
    fn ask(
        &self,
        unit: &Unit,
        said: &mut BTreeMap<(String, &'static str), Vec<[f64; 3]>>,
    ) -> Result<(), Error> {
        let path = self.setup.folder_of(unit).join(FEATURES);
        let (mut found, card) = arrays::read::<f32>(&path).map_err(train::Error::from)?;
        let Some(features) = found.remove("features") else { return Ok(()) };
        let card: serde_json::Value = serde_json::from_str(&card.unwrap_or_default()).unwrap_or_default();
        let scans: Vec<&str> =
            card["scans"].as_array().into_iter().flatten().filter_map(|s| s.as_str()).collect();
        let width = features.shape[1];
        let cohort = self.setup.cohort.scans();
        let of_scan: BTreeMap<String, &Scan> =
            cohort.iter().map(|row| (row.scan.path.display().to_string(), &row.scan)).collect();
        let known: Vec<Known<'_>> = scans
            .iter()
            .enumerate()
            .filter_map(|(i, path)| {
                let scan = *of_scan.get(*path)?;
                Some((i, scan, self.setup.fold_of(&scan.subject)?))
            })
            .collect();
        let rows = |of: &[Known<'_>]| -> Vec<f32> {
            of.iter().flat_map(|(i, ..)| features.data[i * width..][..width].iter().copied()).collect()
        };
        let sited: Vec<_> = known.iter().copied().filter(|(_, scan, _)| scan.site.is_some()).collect();
        let sites: Vec<&str> = sited.iter().filter_map(|(_, scan, _)| scan.site.as_deref()).collect();
        if sites.iter().collect::<BTreeSet<_>>().len() > 1 {
            let data = rows(&sited);
            let features = Mat::rows(&data, [sited.len(), width]);
            let told = probe::predictability_of_class(features, &sites, &people(&sited), SEED);
            let value = [told.balanced_accuracy, told.chance.value, told.p];
            said.entry(("site".to_owned(), "balanced accuracy")).or_default().push(value);
        }
        let score = |scan: &Scan| Some(self.graded(&scan.subject, &scan.path)?.score);
        let rating = |scan: &Scan| scan.quality.map(f64::from);
        let asked: [(&str, Value<'_>); 2] = [("quality score", &score), ("rating", &rating)];
        for (what, value) in asked {
            let rated: Vec<_> = known.iter().copied().filter(|(_, scan, _)| value(scan).is_some()).collect();
            let values: Vec<f64> = rated.iter().filter_map(|(_, scan, _)| value(scan)).collect();
            if rated.len() < 10 || values.iter().all(|v| *v == values[0]) {
                continue;
            }
            let data = rows(&rated);
            let features = Mat::rows(&data, [rated.len(), width]);
            let told = probe::predictability_of_number(features, &values, &people(&rated), SEED);
            for (measure, value) in [("R²", told.r2.value), ("Spearman's correlation", told.spearman.value)]
            {
                said.entry((what.to_owned(), measure)).or_default().push([value, 0.0, f64::NAN]);
            }
        }
        Ok(())
    }
}
