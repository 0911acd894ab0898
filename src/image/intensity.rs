//! Intensities: the brain's percentiles, and the map from scanner units to what the network sees.
use super::Error;

/// Outside the brain. Every brain voxel is greater, also after rounding to half precision or bfloat16, so
/// `value > BACKGROUND` tells brain from background everywhere.
pub const BACKGROUND: f32 = -4.0;
/// The least a brain voxel can be: the next bfloat16 above [`BACKGROUND`].
const LEAST: f32 = -3.984_375;
/// The most a brain voxel can be.
const GREATEST: f32 = 4.0;

/// z = (clip(v, low, high) - mean) / sd, over the brain; then cut to the range that `BACKGROUND` leaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Normalisation {
    low: f32,
    high: f32,
    mean: f64,
    sd: f64,
}

impl Normalisation {
    /// From the brain's voxels, clipped at two percentiles. Errors: a brain of one value.
    pub(super) fn of(brain: &[f32], clip: [f64; 2]) -> Result<(Normalisation, [f32; 2]), Error> {
        let [low, high] = percentiles(brain, clip);
        let n = brain.len() as f64;
        let clipped = || brain.iter().map(|v| f64::from(v.clamp(low, high)));
        let mean = clipped().sum::<f64>() / n;
        let sd = (clipped().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
        // A spread below single precision's is rounding, not anatomy.
        if sd <= 1e-6 * mean.abs() || sd.is_nan() || sd <= 0.0 {
            return Err(Error::Constant(low));
        }
        Ok((Normalisation { low, high, mean, sd }, [low, high]))
    }
    pub(super) fn apply(&self, v: f32) -> f32 {
        (((f64::from(v.clamp(self.low, self.high)) - self.mean) / self.sd) as f32).clamp(LEAST, GREATEST)
    }
}

/// The `p`-th percentiles as NumPy computes them (linear between ranks). Found by counting into 65,536 bins and then
/// ordering only the bin that holds the rank. `values` are finite and not empty.
pub(super) fn percentiles<const N: usize>(values: &[f32], p: [f64; N]) -> [f32; N] {
    const BINS: usize = 1 << 16;
    let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    if low >= high {
        return [low; N];
    }
    let scale = (BINS - 1) as f64 / (f64::from(high) - f64::from(low));
    let bin = |v: f32| ((f64::from(v) - f64::from(low)) * scale) as usize;
    let mut counts = vec![0_usize; BINS];
    values.iter().for_each(|&v| counts[bin(v)] += 1);
    let ranked = |rank: usize| {
        let mut before = 0;
        let mut b = 0;
        while before + counts[b] <= rank {
            before += counts[b];
            b += 1;
        }
        let mut inside: Vec<f32> = values.iter().copied().filter(|&v| bin(v) == b).collect();
        *inside.select_nth_unstable_by(rank - before, f32::total_cmp).1
    };
    p.map(|p| {
        let rank = p / 100.0 * (values.len() - 1) as f64;
        let (below, part) = (rank as usize, rank.fract());
        let v = f64::from(ranked(below));
        if part == 0.0 {
            return v as f32;
        }
        (v + part * (f64::from(ranked(below + 1)) - v)) as f32
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::philox::{Philox, Purpose};

    #[test]
    fn percentiles_are_those_of_sorting() {
        let mut r = Philox::new(3, Purpose::Test, 0, 0);
        let values: Vec<f32> = (0..5001).map(|_| r.normal().exp() * 100.0).collect();
        let mut sorted = values.clone();
        sorted.sort_by(f32::total_cmp);
        let [a, b, c, d] = percentiles(&values, [0.0, 0.5, 99.5, 100.0]);
        assert_eq!([a, b, c, d], [0, 25, 4975, 5000].map(|i| sorted[i]));
        assert_eq!(percentiles(&[1.0, 2.0, 4.0], [25.0, 75.0]), [1.5, 3.0]);
        assert_eq!(percentiles(&[7.0], [50.0]), [7.0]);
    }

    #[test]
    fn brain_stays_above_background_in_every_precision() {
        let values: Vec<f32> = (0..1000).map(|i| if i == 0 { -1e6 } else { i as f32 }).collect();
        let (n, _) = Normalisation::of(&values, [0.0, 100.0]).unwrap();
        let least = n.apply(-1e9);
        assert!(least > BACKGROUND);
        assert!(half::f16::from_f32(least) > half::f16::from_f32(BACKGROUND));
        assert!(half::bf16::from_f32(least) > half::bf16::from_f32(BACKGROUND));
        assert!(Normalisation::of(&[5.0; 9], [0.5, 99.5]).is_err());
    }
}
