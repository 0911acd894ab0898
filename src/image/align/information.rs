//! How much two images say about each other, at one resolution: mutual information as Mattes et al. (2003) count it.
//! The fixed image's values fall into one bin each, the moving image's spread over four by a cubic B-spline, so the
//! measure changes smoothly with the pose.
use crate::image::{
    Volume,
    affine::{Affine, apply, inverse, multiply},
    intensity, trilinear,
};

/// Bins along either axis of the joint histogram.
const BINS: usize = 32;
/// Below this share of samples inside the moving image, a pose is no candidate.
const LEAST_OVERLAP: f64 = 0.4;

/// Two images at one resolution, sampled at fixed places.
pub(super) struct Information {
    /// Millimetres, in the fixed image's space.
    places: Vec<[f64; 3]>,
    /// The fixed image's bin at each place.
    bins: Vec<usize>,
    moving: Volume,
    to_voxel: Affine,
    /// The moving image's value at the lower end of the first inner bin.
    low: f32,
    /// Bins per unit of the moving image's values.
    scale: f32,
}

impl Information {
    /// Samples `fixed` at `places` where it has a value. `None` if either image is constant there.
    pub(super) fn new(fixed: &Volume, moving: Volume, places: &[[f64; 3]]) -> Option<Information> {
        let to_fixed = inverse(&fixed.affine);
        let sample = |p: &[f64; 3]| Some((*p, trilinear::value(fixed, apply(&to_fixed, *p))?));
        let (places, values): (Vec<[f64; 3]>, Vec<f32>) = places.iter().filter_map(sample).unzip();
        let range = |values: &[f32]| {
            let [low, high] = intensity::percentiles(values, [0.5, 99.5]);
            (low < high).then_some((low, high))
        };
        if values.is_empty() {
            return None;
        }
        let (low, high) = range(&values)?;
        let width = BINS as f32 / (high - low);
        let bins = values.iter().map(|v| (((v - low) * width) as usize).min(BINS - 1)).collect();
        let (low, high) = range(&moving.data)?;
        let to_voxel = inverse(&moving.affine);
        // The spline's foot reaches one bin below and two above.
        let scale = (BINS - 3) as f32 / (high - low);
        Some(Information { places, bins, moving, to_voxel, low, scale })
    }

    /// Mutual information in nats when `pose` takes the fixed image's space to the moving one's; negative where too
    /// little of the moving image is under the samples.
    pub(super) fn at(&self, pose: &Affine) -> f64 {
        let to_voxel = multiply(&self.to_voxel, pose);
        let mut joint = [[0.0_f64; BINS]; BINS];
        let mut inside = 0;
        for (place, &bin) in self.places.iter().zip(&self.bins) {
            let Some(value) = trilinear::value(&self.moving, apply(&to_voxel, *place)) else { continue };
            inside += 1;
            let at = ((value - self.low) * self.scale).clamp(0.0, (BINS - 3) as f32 - 1e-3);
            let first = at as usize;
            let t = f64::from(at - first as f32);
            let row = &mut joint[bin][first..first + 4];
            let (t2, t3) = (t * t, t * t * t);
            row[0] += 1.0 - 3.0 * t + 3.0 * t2 - t3;
            row[1] += 3.0 * t3 - 6.0 * t2 + 4.0;
            row[2] += 1.0 + 3.0 * (t + t2 - t3);
            row[3] += t3;
        }
        let overlap = f64::from(inside) / self.places.len() as f64;
        if overlap < LEAST_OVERLAP {
            return overlap - 1.0;
        }
        // A sample counts six, the sum of the spline's four weights without their common sixth.
        mutual_information(&joint, 6.0 * f64::from(inside))
    }
}

/// Σ p(a, b) ln(p(a, b) / p(a) p(b)) of a joint histogram that sums to `total`.
fn mutual_information(joint: &[[f64; BINS]; BINS], total: f64) -> f64 {
    let rows = joint.map(|row| row.iter().sum::<f64>());
    let mut columns = [0.0; BINS];
    for row in joint {
        columns.iter_mut().zip(row).for_each(|(sum, n)| *sum += n);
    }
    let mut sum = 0.0;
    for (row, a) in joint.iter().zip(rows) {
        for (&n, b) in row.iter().zip(columns) {
            if n > 0.0 {
                sum += n * (n * total / (a * b)).ln();
            }
        }
    }
    sum / total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn information_of_known_tables() {
        let mut joint = [[0.0; BINS]; BINS];
        (0..BINS).for_each(|i| joint[i][(5 * i) % BINS] = 2.0);
        let known = mutual_information(&joint, 2.0 * BINS as f64);
        assert!((known - (BINS as f64).ln()).abs() < 1e-12, "a value tells the other: {known}");
        let none = mutual_information(&[[1.0; BINS]; BINS], (BINS * BINS) as f64);
        assert!(none.abs() < 1e-12, "independent: {none}");
    }
}
