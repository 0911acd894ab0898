//! Models on disk: safetensors with the names of facebookresearch/mae and timm, and a card that says what they are.
use super::Error;
use crate::data::{Cache, Fingerprint};
use crate::image::Preprocessing;
use crate::model::{Encoder, Mae};
use crate::ops::AgeLoss;
use crate::program::{Arrays, Machine, arrays};
use crate::tape::{Role, Tape};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a model file says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// What the model does.
    pub task: Task,
    /// How scans have to be prepared for it.
    pub preprocessing: Preprocessing,
    /// The label of the region that PET has to be divided by, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// What the training scans looked like.
    pub fingerprint: Fingerprint,
    /// What it was trained on.
    pub data: Provenance,
    /// Epochs done, and the loss of the kept one.
    pub progress: Progress,
}

impl Card {
    /// Of a model for `task`, trained on `subjects` of `cache` by `split`, and begun with one trained on
    /// `pretrained_on`.
    pub fn new(
        task: Task,
        cache: &Cache,
        subjects: Vec<String>,
        pretrained_on: &[String],
        split: &str,
        progress: Progress,
    ) -> Self {
        Card {
            task,
            preprocessing: cache.preprocessing().clone(),
            reference: cache.reference().map(str::to_owned),
            fingerprint: cache.fingerprint().clone(),
            data: Provenance {
                cache: cache.hash().to_owned(),
                split: split.to_owned(),
                subjects,
                pretrained_on: pretrained_on.to_vec(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            progress,
        }
    }
}

/// What a model does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Reconstructs removed patches.
    Pretraining(Mae),
    /// Predicts an age.
    BrainAge {
        /// Its encoder.
        encoder: Encoder,
        /// How outputs become years.
        head: Head,
    },
}

impl Task {
    /// The encoder, which both have.
    pub fn encoder(&self) -> &Encoder {
        match self {
            Task::Pretraining(mae) => &mae.encoder,
            Task::BrainAge { encoder, .. } => encoder,
        }
    }
}

/// How the outputs of an age model become years.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// What it was trained with.
    pub loss: AgeLoss,
    /// Whether the network adds to a linear readout of regional intensities (`readout.weight`, `readout.bias`).
    pub readout: bool,
    /// Mean of what the network was trained on, years: ages, or what the readout leaves of them.
    pub target_mean: f64,
    /// Its standard deviation, years.
    pub target_sd: f64,
    /// The youngest and the oldest training age, years.
    pub age_range: [f64; 2],
}

impl Head {
    /// A target in years in the unit the loss works in.
    pub fn target(&self, years: f64) -> f64 {
        if let AgeLoss::SoftLabel(_) = self.loss {
            years
        } else {
            (years - self.target_mean) / self.target_sd
        }
    }
    /// The years that `outputs` say: of age, or to add to the readout's.
    pub fn years(&self, outputs: &[f32]) -> f64 {
        match self.loss {
            AgeLoss::SoftLabel(bins) => bins.expectation(outputs.iter().map(|&x| f64::from(x))),
            _ => f64::from(outputs[0]) * self.target_sd + self.target_mean,
        }
    }
}

/// What a model was trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Hash of the cache.
    pub cache: String,
    /// Hash of the split into training and held-out scans.
    pub split: String,
    /// Whose scans it was trained on.
    pub subjects: Vec<String>,
    /// The same of the pretrained model it began with, if it did.
    pub pretrained_on: Vec<String>,
    /// The program's version.
    pub version: String,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Epochs done.
    pub epochs: usize,
    /// Updates done.
    pub steps: u64,
    /// The best validation loss, where one is watched.
    pub best: Option<f64>,
    /// The epoch it was reached after.
    pub best_epoch: usize,
}

/// A model read from a file.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where it was read.
    pub path: PathBuf,
    /// What it says of itself.
    pub card: Card,
    /// Weights, and the optimiser's state in a checkpoint to go on from.
    pub arrays: Arrays<f32>,
}

impl Checkpoint {
    /// Reads a model: a file, or the `model.safetensors` of a run's folder.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or is not one of ours.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let path = if path.is_dir() { path.join("model.safetensors") } else { path.to_owned() };
        let (arrays, card) = arrays::read(&path)?;
        let problem = |reason: String| Error::Checkpoint { path: path.clone(), reason };
        let card = card.ok_or_else(|| problem("it has no card: it was not written by gyrus".into()))?;
        let card =
            serde_json::from_str(&card).map_err(|e| problem(format!("its card cannot be read: {e}")))?;
        Ok(Checkpoint { path, card, arrays })
    }
    /// Writes a model, whole or not at all.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(path: &Path, card: &Card, arrays: &Arrays<f32>) -> Result<(), Error> {
        let card = serde_json::to_string(card).expect("a card is plain data");
        Ok(arrays::write(path, arrays, &card)?)
    }
    /// Loads every named weight of `machine` from here, but for those whose names start with one of `new`.
    ///
    /// # Errors
    /// A weight that is missing or of another shape; what a device says.
    pub fn load_into(&self, machine: &mut dyn Machine<Real = f32>, new: &[&str]) -> Result<(), Error> {
        let tape: Tape = machine.tape().clone();
        for t in tape.with_role(Role::Param).chain(tape.with_role(Role::Frozen)) {
            let info = tape.info(t);
            let name = info.name.as_deref().expect("weights have names");
            if new.iter().any(|n| name.starts_with(n)) {
                continue;
            }
            let problem = |reason| Error::Checkpoint { path: self.path.clone(), reason };
            let array =
                self.arrays.get(name).ok_or_else(|| problem(format!("weight `{name}` is missing")))?;
            if array.shape != info.shape {
                let reason =
                    format!("weight `{name}` has shape {:?}, the model {:?}", array.shape, info.shape);
                return Err(problem(reason));
            }
            machine.write(t, &array.data)?;
        }
        Ok(())
    }
}
