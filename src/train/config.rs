//! Settings of a run, as they stand in a TOML file, in `--set` and in the run's `config.toml`.
use crate::data::Augment;
use crate::model::{Mae, Preset, mae::Weight};
use crate::ops::AgeLoss;
use crate::program::Recipe;
use serde::{Deserialize, Serialize};

/// Settings of `gyrus pretrain`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pretrain {
    /// The model.
    pub model: Model,
    /// What removed patches count for in the loss.
    pub weight: Weight,
    /// Which patches are masked and predicted.
    pub patches: Patches,
    /// Probability that a modality of a scan is hidden: predicted, but never seen. One at least is seen.
    pub modality_dropout: f64,
    /// What the loss of each modality counts for, in the order of the cache's modalities; empty for all the same.
    pub modality_weights: Vec<f64>,
    /// The optimiser and its schedule.
    pub train: Training,
    /// Random changes of each volume.
    pub augment: Augment,
}

/// Settings of `gyrus finetune`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finetune {
    /// The model, where none is taken from a pretrained run.
    pub model: Model,
    /// What the prediction is trained with.
    pub loss: Loss,
    /// Whether the network adds to a linear readout of regional intensities, fitted in closed form.
    pub readout: bool,
    /// Probability that a modality of a scan is left out, so that a model gets used to having fewer. One at least is
    /// shown.
    pub modality_dropout: f64,
    /// Learning rate of a layer, relative to the one above it; 1 for equal rates.
    pub layer_decay: f64,
    /// Share of residual branches dropped in the last block; it falls linearly to 0 in the first.
    pub drop_path: f64,
    /// The optimiser and its schedule.
    pub train: Training,
    /// Random changes of each volume.
    pub augment: Augment,
}

/// The model of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Widths and depths.
    pub preset: Preset,
    /// Voxels along a patch's edge; each axis of the grid must be a multiple of it.
    pub patch: usize,
    /// Share of patches removed.
    pub mask_ratio: f64,
    /// Whether patches are brought to mean 0 and variance 1 before they are compared.
    pub norm_pix: bool,
    /// Whether a class token goes before the patch tokens.
    pub cls_token: bool,
}

impl Model {
    /// The masked autoencoder for volumes of `grid` voxels of some modalities; `Err` says which setting does not fit.
    pub fn mae(&self, modalities: Vec<String>, grid: [usize; 3]) -> Result<Mae, String> {
        let Model { preset, patch, mask_ratio, norm_pix, cls_token } = *self;
        if patch == 0 || grid.iter().any(|n| !n.is_multiple_of(patch)) {
            return Err(format!(
                "model.patch = {patch} does not divide every axis of the cache's grid {grid:?}"
            ));
        }
        let mut mae = preset.mae(modalities, grid, patch);
        (mae.mask_ratio, mae.norm_pix, mae.encoder.cls_token) = (mask_ratio, norm_pix, cls_token);
        if !(0.0..1.0).contains(&mask_ratio) || mae.kept() == 0 || mae.kept() == mae.tokens() {
            let (kept, tokens) = (mae.kept(), mae.tokens());
            return Err(format!("model.mask_ratio = {mask_ratio} keeps {kept} of {tokens} patches"));
        }
        Ok(mae)
    }
}

/// Which patches are masked and predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Patches {
    /// All.
    All,
    /// Those with brain in them: the others are neither seen nor predicted, and sequences differ in length.
    Foreground,
}

/// What an age prediction is trained with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// Absolute error.
    L1,
    /// Squared error.
    L2,
    /// Squared below half a standard deviation of age, absolute above.
    Huber,
    /// A distribution over ages, compared with a soft label around the true age.
    Soft,
}

impl Loss {
    /// The loss for targets with these extremes, in years; regression works on standardised ones.
    pub fn of_targets(self, least: f64, greatest: f64) -> AgeLoss {
        match self {
            Loss::L1 => AgeLoss::L1,
            Loss::L2 => AgeLoss::L2,
            Loss::Huber => AgeLoss::Huber(0.5),
            Loss::Soft => {
                // Room for three standard deviations of the label beyond the training targets.
                let (first, step, sigma) = ((least - 12.0).floor(), 2.0, 4.0);
                let count = ((greatest + 12.0 - first) / step).ceil() as usize + 1;
                AgeLoss::SoftLabel(crate::ops::Bins { first, step, count, sigma })
            }
        }
    }
}

/// The optimiser, its schedule, and what it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Times that every scan is seen.
    pub epochs: usize,
    /// Updates after which the run ends, however many epochs that takes; 0 for what `epochs` says.
    pub steps: u64,
    /// Scans in a batch.
    pub batch: usize,
    /// Batches whose gradients are averaged into one update.
    pub accumulate: usize,
    /// Whether each block's activations are computed again for its gradients instead of kept: the same updates to the
    /// bit, in less memory and more time, so that larger batches fit.
    pub recompute: bool,
    /// Highest learning rate.
    pub lr: f64,
    /// Learning rate at the end.
    pub min_lr: f64,
    /// Epochs over which the learning rate rises from 0.
    pub warmup_epochs: f64,
    /// Decoupled decay of everything but biases and norm weights.
    pub weight_decay: f64,
    /// Decay rates of AdamW's two moments.
    pub betas: [f64; 2],
    /// Gradients are scaled down to this norm; 0 for never.
    pub clip: f64,
    /// Decay of the moving average of the weights, which is then what is kept; 0 for none.
    pub ema: f64,
    /// Share of subjects held out to watch the loss, and in fine-tuning to test on; 0 for none. Cross-validation tests
    /// everybody, and holds out nobody else unless `patience` needs somebody to watch.
    pub validation: f64,
    /// Epochs without a better validation loss before a run stops; 0 for never.
    pub patience: usize,
    /// Epochs between checkpoints.
    pub checkpoint_epochs: usize,
    /// Everything random follows from it.
    pub seed: u64,
}

impl Training {
    /// Its part for the optimiser.
    pub fn recipe(&self) -> Recipe {
        Recipe {
            betas: self.betas,
            weight_decay: self.weight_decay,
            clip: if self.clip > 0.0 { self.clip } else { f64::INFINITY },
            ema: self.ema,
            accumulate: self.accumulate,
            recompute: self.recompute,
        }
    }
    /// Refuses settings no run can have; `Err` names the key.
    pub fn check(&self) -> Result<(), String> {
        let at_least_one = [
            ("epochs", self.epochs),
            ("batch", self.batch),
            ("accumulate", self.accumulate),
            ("checkpoint_epochs", self.checkpoint_epochs),
        ];
        if let Some((key, _)) = at_least_one.into_iter().find(|(_, n)| *n == 0) {
            return Err(format!("train.{key} must be at least 1"));
        }
        let shares =
            [("validation", self.validation), ("ema", self.ema), ("betas", self.betas[0].max(self.betas[1]))];
        if let Some((key, x)) = shares.into_iter().find(|(_, x)| !(0.0..1.0).contains(x)) {
            return Err(format!("train.{key} = {x} must be at least 0 and below 1"));
        }
        let rates = [
            ("lr", self.lr),
            ("min_lr", self.min_lr),
            ("weight_decay", self.weight_decay),
            ("clip", self.clip),
        ];
        if let Some((key, x)) = rates.into_iter().find(|(_, x)| !(*x >= 0.0 && x.is_finite())) {
            return Err(format!("train.{key} = {x} must be a number that is not negative"));
        }
        Ok(())
    }
}

impl Pretrain {
    /// What the loss of each of `modalities` counts for, of 1 in all; `Err` says what does not fit.
    pub fn shares(&self, modalities: &[String]) -> Result<Vec<f64>, String> {
        let weights = &self.modality_weights;
        if weights.is_empty() {
            return Ok(vec![1.0 / modalities.len() as f64; modalities.len()]);
        }
        let sum: f64 = weights.iter().sum();
        if weights.len() != modalities.len()
            || weights.iter().any(|w| *w < 0.0)
            || !(sum > 0.0 && sum.is_finite())
        {
            let modalities = modalities.join(", ");
            return Err(format!(
                "modality_weights = {weights:?} must be numbers of at least 0, one for each of {modalities}"
            ));
        }
        Ok(weights.iter().map(|w| w / sum).collect())
    }
}

/// Refuses a `modality_dropout` that is no probability below 1.
pub fn check_dropout(rate: f64) -> Result<(), String> {
    let fits = (0.0..1.0).contains(&rate);
    if fits { Ok(()) } else { Err(format!("modality_dropout = {rate} must be at least 0 and below 1")) }
}

impl Default for Model {
    fn default() -> Self {
        Model { preset: Preset::Tiny, patch: 16, mask_ratio: 0.75, norm_pix: true, cls_token: true }
    }
}

/// Places and sizes change, intensities do not: how dark and how bright a brain is tells its age.
fn geometric() -> Augment {
    let Augment { flip, rotate_deg, scale, stretch, translate_mm, .. } = Augment::default();
    Augment { flip, rotate_deg, scale, stretch, translate_mm, ..Augment::none() }
}

impl Default for Pretrain {
    fn default() -> Self {
        Pretrain {
            model: Model::default(),
            weight: Weight::Foreground,
            patches: Patches::All,
            modality_dropout: 0.2,
            modality_weights: Vec::new(),
            train: Training {
                epochs: 200,
                steps: 0,
                batch: 16,
                accumulate: 1,
                recompute: false,
                lr: 5e-4,
                min_lr: 0.0,
                warmup_epochs: 15.0,
                weight_decay: 0.05,
                betas: [0.9, 0.95],
                clip: 1.0,
                ema: 0.0,
                validation: 0.1,
                patience: 0,
                checkpoint_epochs: 10,
                seed: 1,
            },
            augment: geometric(),
        }
    }
}

impl Default for Finetune {
    fn default() -> Self {
        Finetune {
            model: Model::default(),
            loss: Loss::Huber,
            readout: true,
            modality_dropout: 0.2,
            layer_decay: 0.75,
            drop_path: 0.1,
            train: Training {
                epochs: 20,
                steps: 0,
                batch: 8,
                accumulate: 1,
                recompute: false,
                lr: 5e-4,
                min_lr: 1e-6,
                warmup_epochs: 2.0,
                weight_decay: 0.05,
                betas: [0.9, 0.999],
                clip: 1.0,
                ema: 0.0,
                validation: 0.1,
                patience: 0,
                checkpoint_epochs: 10,
                seed: 1,
            },
            augment: geometric(),
        }
    }
}
