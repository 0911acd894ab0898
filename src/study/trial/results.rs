//! What a study found: plain data, which the tables, `results.json` and the report are made of.
use crate::study::arms::Summary;
use crate::study::bootstrap::Estimate;
use crate::study::comparison::Comparison;
use serde::Serialize;

/// Everything that a study found.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// What the study is called.
    pub title: String,
    /// The answer in two sentences.
    pub answer: String,
    /// What the numbers allow one to say and what they do not, a paragraph each.
    pub reading: Vec<String>,
    /// How the arms were compared: what, and its value, in order.
    pub design: Vec<(String, String)>,
    /// Units computed, and all that there are.
    pub done: [usize; 2],
    /// The arms, the one that others are compared with first; points of learning curves are not among them.
    pub arms: Vec<Arm>,
    /// Predicting the mean age of those who were learned from.
    pub mean_predictor: Option<Summary>,
    /// Paired comparisons of fine-tuned networks, then of frozen ones; each of the two families is corrected by itself.
    pub comparisons: Vec<Compared>,
    /// How well scans of each tier are reconstructed, by arm.
    pub reconstruction: Vec<ByTier>,
    /// Ages from frozen features by the number of scans pretrained on.
    pub curves: Vec<CurvePoint>,
    /// What else than age can be read from frozen features.
    pub knowledge: Vec<Knowledge>,
    /// The brain-age gap, by arm.
    pub gaps: Vec<Gap>,
    /// Volumes for the viewer.
    #[serde(skip)]
    pub examples: Vec<Example>,
    /// Units that failed: which, and why.
    pub failed: Vec<(String, String)>,
    /// Versions, hashes and the command that repeats it: what, and its value, in order.
    pub provenance: Vec<(String, String)>,
}

/// What came of an arm.
#[derive(Clone, Debug, Serialize)]
pub struct Arm {
    /// Its short name.
    pub name: String,
    /// What it is.
    pub label: String,
    /// Scans pretrained on, mean over units; 0 without pretraining.
    pub scans: f64,
    /// Different people among them.
    pub subjects: f64,
    /// Mean and standard deviation of their ages, years, where known.
    pub age: Option<[f64; 2]>,
    /// Updates of pretraining.
    pub steps: u64,
    /// Ages by the fine-tuned network.
    pub fine_tuned: Option<Summary>,
    /// Ages by ridge regression on the frozen encoder's features.
    pub frozen: Option<Summary>,
    /// Each tested scan: age, and the mean over seeds of what the fine-tuned network predicts.
    pub points: Vec<[f64; 2]>,
    /// Pretraining's loss, mean over units: (update, loss).
    pub loss: Vec<[f64; 2]>,
    /// Fine-tuning's loss, mean over units and folds.
    pub tuning_loss: Vec<[f64; 2]>,
    /// Mean absolute error of the fine-tuned network by grade of the tested scan: grade, scans, error.
    pub by_grade: Vec<(String, usize, Estimate)>,
}

/// Two arms on the same people.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// The arm.
    pub arm: String,
    /// What it is compared with.
    pub with: String,
    /// What is compared.
    pub outcome: Outcome,
    /// The paired difference of absolute errors, arm - with: below 0 the arm is better.
    pub comparison: Comparison,
    /// Its p value after Holm's correction over the family; NaN where there is none.
    pub p_holm: f64,
    /// Whether the difference can be claimed: `p_holm` < 0.05.
    pub shown: bool,
}

/// What arms are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Ages by the fine-tuned network: the primary outcome.
    FineTuned,
    /// Ages by ridge regression on frozen features.
    Frozen,
}

/// How well an arm's model fills in scans of a tier that it has not seen.
#[derive(Clone, Debug, Serialize)]
pub struct ByTier {
    /// The arm.
    pub arm: String,
    /// The tier of the scans.
    pub tier: String,
    /// Different scans.
    pub scans: usize,
    /// Mean squared error, with its interval over subjects.
    pub mse: Estimate,
}

/// A point of a learning curve.
#[derive(Clone, Debug, Serialize)]
pub struct CurvePoint {
    /// The arm whose curve it is of.
    pub arm: String,
    /// Scans pretrained on.
    pub scans: f64,
    /// Mean absolute error, years, of ages from frozen features.
    pub mae: Estimate,
}

/// How well something else than age can be read from an arm's frozen features.
#[derive(Clone, Debug, Serialize)]
pub struct Knowledge {
    /// The arm.
    pub arm: String,
    /// What is read: "site", "quality score", "rating".
    pub what: String,
    /// By what that is measured: "balanced accuracy", "R²", "Spearman".
    pub measure: String,
    /// How well, mean over the units of the first seed.
    pub value: f64,
    /// What nothing but chance would give.
    pub chance: f64,
    /// By permutation or from an interval, where there is one; the median over those units.
    pub p: Option<f64>,
}

/// The brain-age gap of an arm's fine-tuned networks: prediction - age, mean over seeds for each scan.
#[derive(Clone, Debug, Serialize)]
pub struct Gap {
    /// The arm.
    pub arm: String,
    /// "raw", or how it is corrected for age: "Cole", "Beheshti"; fitted on other people than those it is applied to.
    pub correction: String,
    /// Mean gap, years.
    pub mean: f64,
    /// Its correlation with age.
    pub age_r: f64,
    /// Years of gap by one standard deviation more of quality score, age taken out, with the interval over subjects.
    pub quality_slope: Option<Estimate>,
    /// Mean gap by diagnosis: group, people, mean with the interval over subjects.
    pub groups: Vec<(String, usize, Estimate)>,
}

/// A scan as it is, masked, and filled in by the reference arm's model.
#[derive(Clone, Debug)]
pub struct Example {
    /// Which tier it is of.
    pub label: String,
    /// Voxels along x, y and z.
    pub grid: [usize; 3],
    /// Millimetres between voxels.
    pub spacing: f64,
    /// The volume `[x][y][z]`.
    pub original: Vec<f32>,
    /// The same, NaN in removed patches.
    pub masked: Vec<f32>,
    /// The same with removed patches filled in.
    pub reconstruction: Vec<f32>,
}
