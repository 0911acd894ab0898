//! Intensities: the brain's percentiles, and the map from scanner units to what the network sees.
use super::Error;

/// Outside the brain. Every brain voxel is greater, also after rounding to half precision or bfloat16, so
/// `value > BACKGROUND` tells brain from background everywhere.
pub const BACKGROUND: f32 = -4.0;
/// The least a brain voxel can be: the next bfloat16 above [`BACKGROUND`].
pub(super) const LEAST: f32 = -3.984_375;
/// The most a brain voxel can be.
pub(super) const GREATEST: f32 = 4.0;

/// z = (clip(v, low, high) - mean) / sd, over the brain; then cut to the range that `BACKGROUND` leaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Normalisation {
    low: f32,
    high: f32,
    mean: f64,
    /// 1 / sd: multiplying is quicker.
    scale: f64,
}

impl Normalisation {
    /// From the brain's voxels, clipped at two percentiles. Errors: a brain of one value.
    pub(super) fn of(brain: &[f32], at: [f64; 2]) -> Result<(Normalisation, [f32; 2]), Error> {
        let [low, high] = percentiles(brain, at);
        let n = brain.len() as f64;
        let mean = sum(brain, |v| f64::from(clip(v, low, high))) / n;
        let sd = (sum(brain, |v| (f64::from(clip(v, low, high)) - mean).powi(2)) / n).sqrt();
        // A spread below single precision's is rounding, not anatomy.
        if sd <= 1e-6 * mean.abs() || sd.is_nan() || sd <= 0.0 {
            return Err(Error::Constant(low));
        }
        Ok((Normalisation { low, high, mean, scale: 1.0 / sd }, [low, high]))
    }
    pub(super) fn apply(&self, v: f32) -> f32 {
        let z = (f64::from(clip(v, self.low, self.high)) - self.mean) * self.scale;
        clip(z as f32, LEAST, GREATEST)
    }
}

/// `f32::clamp` without its assertion, which keeps loops from being vectorised.
#[inline(always)]
fn clip(v: f32, low: f32, high: f32) -> f32 {
    let v = if v < low { low } else { v };
    if v > high { high } else { v }
}

/// The `p`-th percentiles as NumPy computes them (linear between ranks). Found by counting into 65,536 bins and then
/// ordering only the bins that hold the ranks. `values` are finite and not empty.
pub(super) fn percentiles<const N: usize>(values: &[f32], p: [f64; N]) -> [f32; N] {
    const BINS: usize = 1 << 16;
    let [low, high] = range(values);
    if low >= high {
        return [low; N];
    }
    let scale = (BINS - 1) as f64 / (f64::from(high) - f64::from(low));
    let bin = |v: f32| ((f64::from(v) - f64::from(low)) * scale) as usize;
    let mut counts = vec![0_usize; BINS];
    values.iter().for_each(|&v| counts[bin(v)] += 1);
    let last = values.len() - 1;
    let ranks = p.map(|p| p / 100.0 * last as f64);
    let neighbours = |rank: f64| [rank as usize, (rank as usize + 1).min(last)];
    let mut wanted = vec![false; BINS];
    for rank in ranks.into_iter().flat_map(neighbours) {
        let mut seen = 0;
        let holds = |n: &usize| {
            seen += n;
            seen > rank
        };
        wanted[counts.iter().position(holds).expect("there are more values than ranks")] = true;
    }
    let mut ordered: Vec<f32> = values.iter().copied().filter(|&v| wanted[bin(v)]).collect();
    ordered.sort_unstable_by(f32::total_cmp);
    let value = |rank: usize| {
        let (mut seen, mut left_out) = (0, 0);
        for (n, wanted) in counts.iter().zip(&wanted) {
            seen += n;
            if seen > rank {
                break;
            }
            left_out += if *wanted { 0 } else { *n };
        }
        f64::from(ordered[rank - left_out])
    };
    ranks.map(|rank| {
        let [below, above] = neighbours(rank).map(value);
        (below + rank.fract() * (above - below)) as f32
    })
}

/// The least and the greatest value, in eight lanes as [`sum`].
fn range(values: &[f32]) -> [f32; 2] {
    let (mut low, mut high) = ([values[0]; 8], [values[0]; 8]);
    for eight in values.chunks(8) {
        for ((low, high), &v) in low.iter_mut().zip(&mut high).zip(eight) {
            *low = if v < *low { v } else { *low };
            *high = if v > *high { v } else { *high };
        }
    }
    [low.into_iter().fold(f32::MAX, f32::min), high.into_iter().fold(f32::MIN, f32::max)]
}

/// The sum of `term` over all values, in eight running sums: one alone would wait for each addition.
fn sum(values: &[f32], term: impl Fn(f32) -> f64) -> f64 {
    let mut sums = [0.0; 8];
    let (eights, rest) = values.as_chunks::<8>();
    for eight in eights {
        for (sum, &v) in sums.iter_mut().zip(eight) {
            *sum += term(v);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&v| term(v)).sum::<f64>()
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
