//! Elementary statistics of plain slices, as numpy and scipy define them.

/// The arithmetic mean; NaN of nothing. Taken from the first value on, so that the mean of equal values is exactly
/// theirs and a constant has no deviations, where rounding would leave some and correlate them.
pub(super) fn mean(x: &[f64]) -> f64 {
    x.first().map_or(f64::NAN, |first| first + x.iter().map(|x| x - first).sum::<f64>() / x.len() as f64)
}

/// The middle value, or the mean of the two in the middle.
pub(super) fn median(x: &[f64]) -> f64 {
    let mut ascending = x.to_vec();
    ascending.sort_unstable_by(f64::total_cmp);
    quantile(&ascending, 0.5)
}

/// Σ (x - mean x)(y - mean y).
pub(super) fn sum_of_products(x: &[f64], y: &[f64]) -> f64 {
    let (mean_x, mean_y) = (mean(x), mean(y));
    x.iter().zip(y).map(|(x, y)| (x - mean_x) * (y - mean_y)).sum()
}

/// Σ (x - mean x)² from n, Σ x and Σ x²; NaN where rounding is all that is left of it.
pub(super) fn deviations(n: f64, sum: f64, squares: f64) -> f64 {
    let deviations = squares - sum * sum / n;
    if deviations > 1e-12 * squares { deviations } else { f64::NAN }
}

/// Pearson's r; NaN when `x` or `y` is constant.
pub(super) fn correlation(x: &[f64], y: &[f64]) -> f64 {
    sum_of_products(x, y) / (sum_of_products(x, x) * sum_of_products(y, y)).sqrt()
}

/// Ranks from 1; equal values share the mean of theirs.
pub(super) fn ranks(x: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| x[a].total_cmp(&x[b]));
    let mut ranks = vec![0.0; x.len()];
    let mut before = 0;
    for tied in order.chunk_by(|&a, &b| x[a] == x[b]) {
        for &i in tied {
            ranks[i] = before as f64 + (tied.len() + 1) as f64 / 2.0;
        }
        before += tied.len();
    }
    ranks
}

/// The `q`-quantile (0..=1) of ascending values, interpolated linearly between neighbours as numpy's default does.
pub(super) fn quantile(ascending: &[f64], q: f64) -> f64 {
    let at = q * (ascending.len() - 1) as f64;
    let below = ascending[at.floor() as usize];
    below + (ascending[at.ceil() as usize] - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate_as_numpy_does() {
        let x = [1.0, 2.0, 4.0, 8.0];
        assert_eq!([0.0, 0.5, 0.75, 1.0].map(|q| quantile(&x, q)), [1.0, 3.0, 5.0, 8.0]);
    }

    #[test]
    fn nothing_correlates_with_a_constant() {
        let ages: Vec<f64> = (0..7).map(f64::from).collect();
        assert!(correlation(&ages, &[50.1; 7]).is_nan());
    }

    #[test]
    fn tied_values_share_their_mean_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0, 3.0]), [4.0, 1.0, 4.0, 2.0, 4.0]);
    }
}
