//! What a training of a study leaves behind.
use crate::error::OnFile;
use crate::study::Error;
use crate::study::arms::Tested;
use crate::train::samples::Samples;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The file in a unit's folder.
pub const RECORD: &str = "unit.json";

/// What came of a unit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The arm's name.
    pub arm: String,
    /// Which repeat.
    pub seed: u64,
    /// The folds that were tested.
    pub folds: Vec<usize>,
    /// What was pretrained on.
    pub drawn: Drawn,
    /// Updates of pretraining.
    pub steps: u64,
    /// Pretraining's loss: (update, mean since the point before).
    pub loss: Vec<[f64; 2]>,
    /// The same of fine-tuning, by fold.
    pub tuning_loss: Vec<Vec<[f64; 2]>>,
    /// Ages by the fine-tuned network, or by the readout of an arm without one.
    pub fine_tuned: Vec<Tested>,
    /// Ages by ridge regression on the frozen encoder's features.
    pub frozen: Vec<Tested>,
    /// Errors of reconstruction of scans that were not trained on.
    pub reconstructed: Vec<Reconstructed>,
    /// How long it took; not part of any result.
    pub seconds: f64,
    /// What it was computed with and from.
    pub provenance: Provenance,
}

/// What an arm was pretrained on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drawn {
    /// Scans.
    pub scans: usize,
    /// Different people.
    pub subjects: usize,
    /// Mean and standard deviation of the ages, years, where they are known.
    pub age: Option<[f64; 2]>,
    /// Scans by site, where it is known.
    pub sites: BTreeMap<String, usize>,
}

/// How well a scan was filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reconstructed {
    /// Whose scan.
    pub subject: String,
    /// Which: "as it is", the names of its tiers, or the distorted tier.
    pub tiers: Vec<String>,
    /// Mean squared error over removed brain voxels.
    pub mse: f64,
}

/// What a unit was computed with and from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The program's version.
    pub version: String,
    /// Hashes of the caches.
    pub data: Vec<String>,
    /// Hash of the folds.
    pub split: String,
    /// Hash of the images that were pretrained on, in their order.
    pub drawn: String,
    /// Hash of the study's settings.
    pub settings: String,
}

impl Drawn {
    /// What samples `numbers` are.
    pub fn of(samples: &Samples<'_>, numbers: &[usize]) -> Drawn {
        let ages: Vec<f64> = numbers.iter().filter_map(|&n| samples.age(n)).map(f64::from).collect();
        let (n, mean) = (ages.len() as f64, ages.iter().sum::<f64>() / ages.len() as f64);
        let sd = (ages.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        let mut sites = BTreeMap::new();
        for site in numbers.iter().filter_map(|&n| samples.scan(n).site.clone()) {
            *sites.entry(site).or_insert(0) += 1;
        }
        let age = (ages.len() > 1).then_some([mean, sd]);
        Drawn { scans: numbers.len(), subjects: samples.subjects(numbers).len(), age, sites }
    }
}

/// Whether the unit in `folder` is done.
pub fn is_done(folder: &Path) -> bool {
    folder.join(RECORD).exists()
}

/// Reads what came of the unit in `folder`, if it is done.
///
/// # Errors
/// A record that cannot be read.
pub fn done(folder: &Path) -> Result<Option<Record>, Error> {
    let path = folder.join(RECORD);
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).on_file("read", &path)?;
    let record = serde_json::from_str(&text).map_err(|e| Error::Setup(format!("{}: {e}", path.display())))?;
    Ok(Some(record))
}
