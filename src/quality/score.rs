//! From measures to a score and a grade: by documented limits that a file can change, or by the quantiles of a dataset.
use super::{MEASURES, Measures, measures::Measure};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// What a scan is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Grade {
    /// Not to be used.
    Exclude,
    /// To be used where little else is at hand.
    Poor,
    /// Good enough.
    Acceptable,
    /// Nothing to find fault with.
    Excellent,
}

/// All grades, from the worst.
pub const GRADES: [Grade; 4] = [Grade::Exclude, Grade::Poor, Grade::Acceptable, Grade::Excellent];

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// How one measure counts: nothing up to `good`, one point at `bad`, and so on beyond. `bad` may be the lower one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// As good as it needs to be.
    pub good: f64,
    /// Where the score is halved.
    pub bad: f64,
    /// Points are multiplied by it; 0 leaves the measure out.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

impl Limits {
    fn points(&self, value: f64) -> f64 {
        self.weight * ((value - self.good) / (self.bad - self.good)).max(0.0)
    }
}

/// The limits behind scores and grades.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// The least score of an excellent scan.
    pub excellent: f64,
    /// The least score of an acceptable one.
    pub acceptable: f64,
    /// The least score of a poor one; below, it is excluded.
    pub poor: f64,
    /// By measure.
    pub limits: BTreeMap<String, Limits>,
}

/// Limits that come with gyrus: (measure, good, bad). `good` is about what sound T1-weighted scans of 1 to 2 mm have,
/// `bad` where a fault is plain to see; both were set by the spread of sound scans and by what known distortions do to
/// them, by people who saw how measures agree with ratings of the same heads.
const LIMITS: [(&str, f64, f64); 23] = [
    ("not_finite", 0.0, 0.01),
    ("clipped", 0.001, 0.02),
    ("spacing_max", 2.0, 5.0),
    ("anisotropy", 1.5, 4.0),
    ("extent_off", 5.0, 30.0),
    ("volume_off", 0.05, 0.5),
    ("cut_area", 2.0, 20.0),
    ("missing_slices", 0.01, 0.1),
    ("asymmetry", 0.06, 0.2),
    ("apart", 0.01, 0.1),
    ("holes", 2.0, 20.0),
    ("cjv", 0.9, 1.5),
    ("snr_wm", 8.0, 4.0),
    ("wm2max", 0.65, 0.4),
    ("noise", 0.035, 0.11),
    ("air_sd", 0.004, 0.04),
    ("air_structure", 0.003, 0.02),
    ("qi1", 0.005, 0.1),
    ("fwhm", 6.4, 10.0),
    ("fwhm_ratio", 1.2, 1.7),
    ("comb", 0.012, 0.1),
    ("spike", 0.1, 0.8),
    ("bias", 0.14, 0.28),
];

impl Default for Thresholds {
    fn default() -> Self {
        let limits = LIMITS.map(|(name, good, bad)| (name.to_owned(), Limits { good, bad, weight: 1.0 }));
        Thresholds { excellent: 75.0, acceptable: 50.0, poor: 20.0, limits: limits.into() }
    }
}

/// Thresholds that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not TOML, an unknown key or a value of another type.
    #[error("not a table of thresholds")]
    Toml(#[from] toml::de::Error),
    /// Limits of something that is not measured.
    #[error("limits.{name}: no measure is called that; {}", match nearest {
        Some(nearest) => format!("did you mean {nearest}?"),
        None => format!("there are {}", MEASURES.map(|m| m.name).join(", ")),
    })]
    Unknown {
        /// The name.
        name: String,
        /// A measure that is called nearly so.
        nearest: Option<&'static str>,
    },
    /// A value that makes no sense.
    #[error("{key} is {value}, but must be {expected}")]
    Value {
        /// Which one.
        key: String,
        /// What it is.
        value: f64,
        /// What it may be.
        expected: &'static str,
    },
}

/// What a scan's measures come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// 100 without a fault; every point of fault halves it.
    pub score: f64,
    /// By the score.
    pub grade: Grade,
    /// The faults, in words, the gravest first.
    pub reasons: Vec<String>,
}

/// Points from which a fault is mentioned: the score is 16 % less for it.
const MENTIONED: f64 = 0.25;

impl Thresholds {
    /// The default ones, changed by what the TOML `text` says.
    ///
    /// # Errors
    /// Unknown keys or measures; limits that are equal or not finite; grades out of order.
    pub fn read(text: &str) -> Result<Thresholds, Error> {
        let changed: Thresholds = toml::from_str(text)?;
        let mut all = Thresholds::default();
        for (name, limits) in &changed.limits {
            if !MEASURES.iter().any(|m| m.name == name) {
                let near = |m: &Measure| (strsim::jaro_winkler(m.name, name), m.name);
                let best = MEASURES.iter().map(near).max_by(|a, b| a.0.total_cmp(&b.0));
                let nearest = best.filter(|(likeness, _)| *likeness > 0.8).map(|(_, name)| name);
                return Err(Error::Unknown { name: name.clone(), nearest });
            }
            let refuse = |key, value, expected| {
                Err(Error::Value { key: format!("limits.{name}.{key}"), value, expected })
            };
            if !limits.good.is_finite() {
                return refuse("good", limits.good, "finite");
            }
            if !limits.bad.is_finite() || limits.bad == limits.good {
                return refuse("bad", limits.bad, "finite and not the same as good");
            }
            if !(0.0..=100.0).contains(&limits.weight) {
                return refuse("weight", limits.weight, "from 0 to 100");
            }
            all.limits.insert(name.clone(), *limits);
        }
        let order =
            [("poor", changed.poor), ("acceptable", changed.acceptable), ("excellent", changed.excellent)];
        let mut least = 0.0;
        for (key, value) in order {
            if !(least..=100.0).contains(&value) {
                let expected = "from 0 to 100, with poor <= acceptable <= excellent";
                return Err(Error::Value { key: key.into(), value, expected });
            }
            least = value;
        }
        let Thresholds { excellent, acceptable, poor, .. } = changed;
        Ok(Thresholds { excellent, acceptable, poor, ..all })
    }

    /// The score of what was measured; what is undefined counts nothing.
    pub fn standing(&self, measures: &Measures) -> Standing {
        let mut faults = Vec::new();
        for measure in &MEASURES {
            if let (Some(limits), Some(value)) = (self.limits.get(measure.name), measures.get(measure.name)) {
                faults.push((limits.points(value), measure, value, limits));
            }
        }
        faults.sort_by(|a, b| b.0.total_cmp(&a.0));
        let score = 100.0 * 0.5_f64.powf(faults.iter().map(|f| f.0).sum());
        let words = |(_, measure, value, limits): &(f64, &Measure, f64, &Limits)| {
            let side = if limits.bad > limits.good { "at most" } else { "at least" };
            let unit = if measure.units == "1" { String::new() } else { format!(" {}", measure.units) };
            let name = measure.long_name.to_lowercase();
            format!("{name} {}{unit} (good: {side} {})", short(*value), short(limits.good))
        };
        let reasons = faults.iter().filter(|f| f.0 >= MENTIONED).map(words).collect();
        Standing { score, grade: self.grade(score), reasons }
    }

    /// The grade of a score.
    pub fn grade(&self, score: f64) -> Grade {
        match score {
            s if s >= self.excellent => Grade::Excellent,
            s if s >= self.acceptable => Grade::Acceptable,
            s if s >= self.poor => Grade::Poor,
            _ => Grade::Exclude,
        }
    }
}

/// Three digits that count.
fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let before = value.abs().log10().floor() as i32 + 1;
    format!("{value:.*}", (3 - before).clamp(0, 6) as usize)
}

/// Grades by rank: below the first percentile of `scores` a scan is excluded, below the second poor, below the third
/// acceptable.
pub fn grade_by_quantiles(scores: &[f64], percentiles: [f64; 3]) -> Vec<Grade> {
    let mut ascending = scores.to_vec();
    ascending.sort_unstable_by(f64::total_cmp);
    let grade = |score: &f64| {
        let below = ascending.partition_point(|s| s < score) as f64 / ascending.len() as f64;
        let above = percentiles.iter().filter(|p| below >= **p / 100.0).count();
        GRADES[above]
    };
    scores.iter().map(grade).collect()
}
