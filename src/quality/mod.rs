//! The quality of scans: what is measured ([`measure`], [`MEASURES`]), what a scan is worth by documented limits
//! ([`Thresholds`]), a score that is fitted to ratings ([`calibrate`]), and scans made worse in known ways ([`distort`]).
//!
//! What can be measured depends on what is left of the head ([`State`]): a measure that is undefined there is absent,
//! never a number that looks like one. Tissue is measured in the brain's mask where there is one.
mod bias;
mod calibrate;
mod coverage;
pub mod distort;
pub mod graded;
mod measures;
mod noise;
mod scene;
mod score;
mod sharpness;
mod tissue;

pub use calibrate::{Member, Prediction, calibrate};
pub use measures::{MEASURES, Measure, Measures};
pub use scene::{Region, State};
pub use score::{Error, GRADES, Grade, Limits, Standing, Thresholds, grade_by_quantiles};

use crate::image::{self, Volume};

/// What was measured of a scan, and what it was measured on.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What is left of the head.
    pub state: State,
    /// Where tissue was measured.
    pub region: Region,
    /// The measures.
    pub measures: Measures,
}

/// Measures a scan that is seen as RAS ([`image::orientation::to_ras`]). `mask` covers the brain (values above 0.5).
///
/// # Errors
/// A mask of another scan; an image in which nothing stands out, or all voxels are the same; one that was normalised, so
/// that more than 5 % of its voxels are below 0.
pub fn measure(volume: &Volume, mask: Option<Volume>) -> Result<Measured, image::Error> {
    // A few are what interpolation leaves.
    let below = 100.0 * image::count(&volume.data, |v| v < 0.0) as f64 / volume.data.len() as f64;
    if below > 5.0 {
        return Err(image::Error::Negative { percent: below });
    }
    let mut measures = Measures::default();
    let mut scene = scene::Scene::new(volume, mask, &mut measures)?;
    let gone = coverage::measure(&scene, &mut measures);
    scene.leave_out(gone);
    let tissue = tissue::Tissue::fit(&scene.inside());
    tissue::measure(&scene, &tissue, &mut measures);
    noise::measure(&scene, &tissue, &mut measures);
    sharpness::measure(&scene, &tissue, &mut measures);
    bias::measure(&scene, &tissue, &mut measures);
    Ok(Measured { state: scene.state, region: scene.region, measures })
}

/// The value of rank `q` (0 to 1) of `values`, which are reordered; NaN of none.
fn percentile(values: &mut [f32], q: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let rank = (q * (values.len() - 1) as f64).round() as usize;
    f64::from(*values.select_nth_unstable_by(rank, f32::total_cmp).1)
}

/// The mean and the standard deviation (over n - 1) of `values`.
fn mean_and_sd(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut n, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for v in values {
        n += 1.0;
        let gap = v - mean;
        mean += gap / n;
        squares += gap * (v - mean);
    }
    (mean, if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { f64::NAN })
}

#[cfg(test)]
mod tests;
