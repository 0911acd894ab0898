//! A linear readout of regional intensities: ridge regression of age on how the intensities of each patch are
//! distributed.
//!
//! A patch embedding is linear in the voxels, so it sees a patch's mean but not how much of it is dark. How much of
//! each region is fluid, grey or white is what ages a brain most visibly, and with a hundred scans it is better
//! counted than learned. Features are square roots of soft histograms (as Hellinger's distance compares
//! distributions), the weights come from ridge regression in closed form, its strength from leave-one-out.
use super::samples::Volumes;
use crate::image::BACKGROUND;
use crate::machine::{
    Mat,
    ridge::{Penalised, Ridge},
};
use crate::model::Encoder;
use crate::ops::Patches;
use crate::program::{Array, Arrays};
use rayon::prelude::*;

/// Bins of a histogram, centred a third of the brain's standard deviation apart, from 10/3 below its mean on.
pub const BINS: usize = 17;
const FIRST: f32 = -10.0 / 3.0;
const PER_UNIT: f32 = 3.0;

/// Added to a share before its root, whose slope at zero is infinite.
const LEAST: f32 = 1e-4;

/// Ridge penalties that are tried, as shares of the mean squared length of the centred features.
const PENALTIES: [f64; 7] = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0];

/// Features of the volumes of one head, `[L, BINS]`: for each patch the roots of the shares of its voxels that are brain
/// of each intensity; NaN for a modality that is missing. A voxel counts for the two bins it lies between, by nearness.
pub fn features(encoder: &Encoder, volumes: &Volumes) -> Vec<f32> {
    let patches = Patches::new(1, encoder.grid, encoder.patch);
    let of = |volume: &Option<Vec<f32>>| match volume {
        Some(volume) => histograms(patches, volume),
        None => vec![f32::NAN; patches.tokens() * BINS],
    };
    volumes.iter().flat_map(of).collect()
}

fn histograms(patches: Patches, volume: &[f32]) -> Vec<f32> {
    let mut all = vec![0.0; patches.tokens() * BINS];
    for (token, shares) in all.chunks_exact_mut(BINS).enumerate() {
        for line in patches.lines(token) {
            for &v in volume[line..line + patches.edge].iter().filter(|&&v| v > BACKGROUND) {
                let at = ((v - FIRST) * PER_UNIT).clamp(0.0, (BINS - 1) as f32 - 1e-3);
                let (bin, above) = (at as usize, at.fract());
                shares[bin] += 1.0 - above;
                shares[bin + 1] += above;
            }
        }
        shares.iter_mut().for_each(|s| *s = (*s / patches.values() as f32 + LEAST).sqrt());
    }
    all
}

/// A fitted readout.
#[derive(Clone, Debug, PartialEq)]
pub struct Readout {
    /// Years per unit of each feature.
    pub weight: Vec<f32>,
    /// The mean of each feature over the training scans, which stands for one that is missing.
    pub mean: Vec<f32>,
    /// Years at these means.
    pub bias: f64,
}

impl Readout {
    /// The age that `features` say, years.
    pub fn years(&self, features: &[f32]) -> f64 {
        let term = |((w, mean), f): ((&f32, &f32), &f32)| match f.is_nan() {
            true => 0.0,
            false => f64::from(*w) * (f64::from(*f) - f64::from(*mean)),
        };
        self.bias + self.weight.iter().zip(&self.mean).zip(features).map(term).sum::<f64>()
    }
    /// As it stands in a model file: `readout.weight` and `readout.mean` `[L, BINS]`, `readout.bias` `[1]`.
    pub fn arrays(&self, encoder: &Encoder) -> Arrays<f32> {
        let shape = vec![encoder.patches().tokens(), BINS];
        let table = |data: &Vec<f32>| Array { shape: shape.clone(), data: data.clone() };
        let bias = Array { shape: vec![1], data: vec![self.bias as f32] };
        let named = [("weight", table(&self.weight)), ("mean", table(&self.mean)), ("bias", bias)];
        named.into_iter().map(|(name, array)| (format!("readout.{name}"), array)).collect()
    }
    /// From a model file; `Err` names what is missing or does not fit.
    pub fn of_arrays(arrays: &Arrays<f32>, encoder: &Encoder) -> Result<Readout, String> {
        let array = |name: &str, len: usize| {
            let found = arrays.get(name).ok_or_else(|| format!("`{name}` is missing"))?;
            let fits = found.data.len() == len;
            fits.then_some(&found.data)
                .ok_or_else(|| format!("`{name}` has {} values, not {len}", found.data.len()))
        };
        let len = encoder.patches().tokens() * BINS;
        Ok(Readout {
            weight: array("readout.weight", len)?.clone(),
            mean: array("readout.mean", len)?.clone(),
            bias: array("readout.bias", 1)?[0].into(),
        })
    }
}

/// A readout with what it says of each training scan when that scan is left out of the fit, years.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The readout of all training scans.
    pub readout: Readout,
    /// Leave-one-out predictions.
    pub left_out: Vec<f64>,
}

/// Fits a readout to the features and ages of training scans, missing ones at their means; the penalty is the one whose leave-one-out error is
/// least.
pub fn fit(features: &[Vec<f32>], ages: &[f64]) -> Fitted {
    let (n, len) = (features.len(), features[0].len());
    let mean_of = |j: usize| {
        let there = || features.iter().map(|f| f64::from(f[j])).filter(|f| !f.is_nan());
        there().sum::<f64>() / there().count().max(1) as f64
    };
    let mean: Vec<f64> = (0..len).into_par_iter().map(mean_of).collect();
    let centre = |(&f, m): (&f32, &f64)| if f.is_nan() { 0.0 } else { f64::from(f) - m };
    let centred: Vec<f64> = features.iter().flat_map(|f| f.iter().zip(&mean).map(centre)).collect();
    let ridge = Ridge::new(Mat::rows(&centred, [n, len]));

    let age_mean = ages.iter().sum::<f64>() / n as f64;
    let targets: Vec<f64> = ages.iter().map(|a| a - age_mean).collect();
    let targets = Mat::rows(&targets, [n, 1]);
    // Scans that are all the same have no unit, and weights of 0 with any.
    let unit = Some(ridge.mean_square()).filter(|u| *u > 0.0).unwrap_or(1.0);
    let error = |p: &Penalised<'_>| p.left_out_errors(targets).iter().map(|e| e * e).sum::<f64>();
    let best = PENALTIES.iter().filter_map(|penalty| ridge.penalised(penalty * unit));
    let best = best.min_by(|a, b| error(a).total_cmp(&error(b)));
    let best = best.expect("a penalty makes any finite features positive definite");
    let weight = best.weights(targets);
    let single = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect();
    let readout = Readout { weight: single(weight), mean: single(mean), bias: age_mean };
    let left_out = ages.iter().zip(best.left_out_errors(targets)).map(|(age, error)| age - error).collect();
    Fitted { readout, left_out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::philox::{Philox, Purpose};
    use approx::assert_relative_eq;

    fn cohort(n: usize, len: usize) -> (Vec<Vec<f32>>, Vec<f64>) {
        let mut r = Philox::new(5, Purpose::Test, 0, 0);
        let features: Vec<Vec<f32>> = (0..n).map(|_| (0..len).map(|_| r.normal()).collect()).collect();
        let age = |f: &Vec<f32>| 50.0 + f64::from(10.0 * f[0] - 4.0 * f[1]);
        let ages = features.iter().map(|f| age(f) + f64::from(r.normal())).collect();
        (features, ages)
    }

    #[test]
    fn a_linear_relation_is_found() {
        let (features, ages) = cohort(60, 5);
        let fitted = fit(&features, &ages);
        assert_relative_eq!(fitted.readout.weight[0], 10.0, epsilon = 0.5);
        assert_relative_eq!(fitted.readout.weight[1], -4.0, epsilon = 0.5);
        let error =
            features.iter().zip(&ages).map(|(f, a)| (fitted.readout.years(f) - a).abs()).sum::<f64>() / 60.0;
        assert!(error < 1.2, "{error}");
    }

    #[test]
    fn what_is_missing_says_nothing() {
        let (mut features, ages) = cohort(60, 5);
        features.iter_mut().step_by(3).for_each(|f| f[1] = f32::NAN);
        let readout = fit(&features, &ages).readout;
        assert_relative_eq!(readout.weight[1], -4.0, epsilon = 1.5);
        let (mut at_mean, missing) =
            (features[1].clone(), [&features[1][..1], &[f32::NAN], &features[1][2..]].concat());
        at_mean[1] = readout.mean[1];
        assert_relative_eq!(readout.years(&missing), readout.years(&at_mean), epsilon = 1e-9);
    }

    #[test]
    fn features_count_each_brain_voxel_once() {
        let patches = Patches::new(1, [4, 4, 4], 4);
        let mut volume = vec![BACKGROUND; 64];
        volume[..16].fill(0.1);
        volume[16..24].fill(-3.5);
        let total: f32 = histograms(patches, &volume).iter().map(|f| f * f - LEAST).sum();
        assert_relative_eq!(total, 24.0 / 64.0, epsilon = 1e-5);
    }
}
