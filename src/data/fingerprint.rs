//! What the scans of a cache looked like, so that a model can tell a scan unlike its training data.
use crate::image::{BACKGROUND, Prepared};
use serde::{Deserialize, Serialize};

/// What one scan looks like, in a few numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Traits {
    /// Cube root of a voxel's volume in the file, in millimetres.
    pub voxel_mm: f64,
    /// Longest edge of a voxel in the file, in millimetres.
    pub thickest_mm: f64,
    /// Volume of the brain mask, in millilitres.
    pub brain_ml: f64,
    /// The share of the grid that is brain.
    pub foreground: f64,
    /// 10th percentile of the normalised brain.
    pub dark: f64,
    /// Median of the normalised brain.
    pub middle: f64,
    /// 90th percentile of the normalised brain.
    pub bright: f64,
}

impl Traits {
    /// The traits of a prepared scan.
    pub fn of(prepared: &Prepared) -> Traits {
        let mut brain: Vec<f32> = prepared.data.iter().copied().filter(|&v| v > BACKGROUND).collect();
        let last = brain.len().saturating_sub(1);
        let [dark, middle, bright] = [0.1, 0.5, 0.9].map(|q| {
            let rank = (q * last as f64).round() as usize;
            brain.select_nth_unstable_by(rank, f32::total_cmp).1.to_owned().into()
        });
        let spacing = prepared.stats.spacing;
        Traits {
            voxel_mm: spacing.iter().product::<f64>().cbrt(),
            thickest_mm: spacing.into_iter().fold(0.0, f64::max),
            brain_ml: prepared.stats.brain_ml,
            foreground: prepared.foreground,
            dark,
            middle,
            bright,
        }
    }

    /// The traits in the order of their declaration.
    fn values(&self) -> [f64; 7] {
        [self.voxel_mm, self.thickest_mm, self.brain_ml, self.foreground, self.dark, self.middle, self.bright]
    }
}

/// Where the middle nine tenths of some scans lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// 5th percentile.
    pub p5: f64,
    /// 50th percentile.
    pub median: f64,
    /// 95th percentile.
    pub p95: f64,
}

/// The spread of each of the [`Traits`] over the scans of a cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// Of [`Traits::voxel_mm`].
    pub voxel_mm: Spread,
    /// Of [`Traits::thickest_mm`].
    pub thickest_mm: Spread,
    /// Of [`Traits::brain_ml`].
    pub brain_ml: Spread,
    /// Of [`Traits::foreground`].
    pub foreground: Spread,
    /// Of [`Traits::dark`].
    pub dark: Spread,
    /// Of [`Traits::middle`].
    pub middle: Spread,
    /// Of [`Traits::bright`].
    pub bright: Spread,
}

impl Fingerprint {
    /// The fingerprint of scans with these traits; there must be one at least.
    pub fn of(scans: &[Traits]) -> Fingerprint {
        assert!(!scans.is_empty(), "a fingerprint needs scans");
        let spread = |trait_number: usize| {
            let mut values: Vec<f64> = scans.iter().map(|s| s.values()[trait_number]).collect();
            values.sort_by(f64::total_cmp);
            let [p5, median, p95] = [0.05, 0.5, 0.95].map(|q| {
                let at = q * (values.len() - 1) as f64;
                let (low, high) = (values[at.floor() as usize], values[at.ceil() as usize]);
                low + (high - low) * at.fract()
            });
            Spread { p5, median, p95 }
        };
        let [voxel_mm, thickest_mm, brain_ml, foreground, dark, middle, bright] =
            [0, 1, 2, 3, 4, 5, 6].map(spread);
        Fingerprint { voxel_mm, thickest_mm, brain_ml, foreground, dark, middle, bright }
    }

    /// What is unlike the fingerprinted scans about a scan, in words: traits that lie further outside their p5 to
    /// p95 than that range is wide, or than a tenth of the median where the range is narrower.
    pub fn unusual(&self, scan: &Traits) -> Vec<String> {
        let spreads = [
            ("voxel size (mm)", &self.voxel_mm),
            ("thickest voxel edge (mm)", &self.thickest_mm),
            ("brain volume (ml)", &self.brain_ml),
            ("brain share of the grid", &self.foreground),
            ("10th percentile of normalised intensity", &self.dark),
            ("median of normalised intensity", &self.middle),
            ("90th percentile of normalised intensity", &self.bright),
        ];
        let odd = |(value, (name, s)): (f64, (&str, &Spread))| {
            let margin = (s.p95 - s.p5).max(0.1 * s.median.abs());
            let usual = (s.p5 - margin..=s.p95 + margin).contains(&value);
            (!usual).then(|| {
                format!("{name} is {value:.2}, but {:.2} to {:.2} in the training scans", s.p5, s.p95)
            })
        };
        scan.values().into_iter().zip(spreads).filter_map(odd).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scans_far_outside_the_usual_range_are_unusual() {
        let scan = |i: f64| Traits {
            voxel_mm: 2.0,
            thickest_mm: 2.0,
            brain_ml: 1000.0 + 5.0 * i,
            foreground: 0.3,
            dark: -1.3,
            middle: 0.1,
            bright: 1.2,
        };
        let fingerprint = Fingerprint::of(&(0..=100).map(|i| scan(f64::from(i))).collect::<Vec<_>>());
        assert_eq!(fingerprint.brain_ml, Spread { p5: 1025.0, median: 1250.0, p95: 1475.0 });
        assert!(fingerprint.unusual(&scan(50.0)).is_empty());
        assert!(fingerprint.unusual(&scan(120.0)).is_empty());
        let odd = fingerprint.unusual(&Traits { brain_ml: 2400.0, bright: 3.0, ..scan(50.0) });
        assert_eq!(odd.len(), 2);
        assert_eq!(odd[0], "brain volume (ml) is 2400.00, but 1025.00 to 1475.00 in the training scans");
    }
}
