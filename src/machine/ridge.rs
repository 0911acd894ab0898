//! Ridge regression in closed form, with an intercept that is not penalised: weights w that minimise
//! `|y - X w|² + penalty |w|²` for centred features X and targets y. It is solved over features or over rows, whichever
//! are fewer, for many targets at once.
use super::{Into, Mat, MatMut, Threads, cholesky::Cholesky, gemm};

/// Centred features `[n, d]`, to be fitted with any penalty.
pub struct Ridge<'a> {
    x: Mat<'a, f64>,
    /// X Xᵀ `[n, n]`, or where d is less than n Xᵀ X `[d, d]`.
    products: Vec<f64>,
}

impl<'a> Ridge<'a> {
    /// Of centred features.
    pub fn new(x: Mat<'a, f64>) -> Self {
        let products = if over_rows(x) { product(x, x.t()) } else { product(x.t(), x) };
        Ridge { x, products }
    }
    /// The mean squared length of a row, a unit for penalties.
    pub fn mean_square(&self) -> f64 {
        let [n, d] = self.x.shape();
        let diagonal = self.products.iter().step_by(n.min(d) + 1);
        diagonal.sum::<f64>() / n as f64
    }
    /// With a penalty; `None` if it is so small that the weights are not determined.
    pub fn penalised(&self, penalty: f64) -> Option<Penalised<'a>> {
        let [n, d] = self.x.shape();
        let side = n.min(d);
        let mut matrix = self.products.clone();
        matrix.iter_mut().step_by(side + 1).for_each(|diagonal| *diagonal += penalty);
        let inverse = Cholesky::of(matrix, side)?.inverse();
        let intercept = 1.0 / n as f64;
        let freedom = if over_rows(self.x) {
            // The hat matrix is X Xᵀ (X Xᵀ + p)⁻¹ = 1 - p (X Xᵀ + p)⁻¹.
            inverse.iter().step_by(n + 1).map(|i| penalty * i - intercept).collect()
        } else {
            let hat = product(self.x, Mat::rows(&inverse, [d, d]));
            let leverage = |i: usize| -> f64 {
                self.x.row(i).iter().zip(&hat[i * d..(i + 1) * d]).map(|(x, h)| x * h).sum()
            };
            (0..n).map(|i| 1.0 - intercept - leverage(i)).collect()
        };
        Some(Penalised { x: self.x, penalty, inverse, freedom })
    }
}

/// A penalty whose weights can be had for any targets `[n, m]`, centred by column.
pub struct Penalised<'a> {
    x: Mat<'a, f64>,
    penalty: f64,
    /// (X Xᵀ + penalty)⁻¹ or (Xᵀ X + penalty)⁻¹
    inverse: Vec<f64>,
    freedom: Vec<f64>,
}

impl Penalised<'_> {
    /// How free each row's residual is: 1 - its leverage, the diagonal of the hat matrix with 1 / n for the intercept.
    pub fn freedom(&self) -> &[f64] {
        &self.freedom
    }
    /// The weights `[d, m]`.
    pub fn weights(&self, targets: Mat<'_, f64>) -> Vec<f64> {
        let ([n, d], [_, m]) = (self.x.shape(), targets.shape());
        if over_rows(self.x) {
            product(self.x.t(), Mat::rows(&self.dual(targets), [n, m]))
        } else {
            let right = product(self.x.t(), targets);
            product(Mat::rows(&self.inverse, [d, d]), Mat::rows(&right, [d, m]))
        }
    }
    /// What the weights leave of the targets, `[n, m]`.
    pub fn residuals(&self, targets: Mat<'_, f64>) -> Vec<f64> {
        let ([_, d], [_, m]) = (self.x.shape(), targets.shape());
        if over_rows(self.x) {
            let mut residuals = self.dual(targets);
            residuals.iter_mut().for_each(|r| *r *= self.penalty);
            return residuals;
        }
        let mut residuals = product(self.x, Mat::rows(&self.weights(targets), [d, m]));
        for (i, row) in residuals.chunks_exact_mut(m).enumerate() {
            row.iter_mut().zip(targets.row(i)).for_each(|(fitted, target)| *fitted = target - *fitted);
        }
        residuals
    }
    /// The error on each row when it is left out of the fit, mean and all: residual / (1 - leverage) (Allen's PRESS),
    /// `[n, m]`.
    pub fn left_out_errors(&self, targets: Mat<'_, f64>) -> Vec<f64> {
        let m = targets.shape()[1];
        let mut errors = self.residuals(targets);
        for (row, freedom) in errors.chunks_exact_mut(m).zip(&self.freedom) {
            row.iter_mut().for_each(|e| *e /= freedom);
        }
        errors
    }
    /// (X Xᵀ + penalty)⁻¹ y, whose product with Xᵀ the weights are.
    fn dual(&self, targets: Mat<'_, f64>) -> Vec<f64> {
        let n = targets.shape()[0];
        product(Mat::rows(&self.inverse, [n, n]), targets)
    }
}

fn over_rows(x: Mat<'_, f64>) -> bool {
    let [n, d] = x.shape();
    n <= d
}

/// `a b`, row by row.
pub fn product(a: Mat<'_, f64>, b: Mat<'_, f64>) -> Vec<f64> {
    let shape = [a.shape()[0], b.shape()[1]];
    let mut c = vec![0.0; shape[0] * shape[1]];
    gemm(MatMut::rows(&mut c, shape), a, b, 1.0, Into::Replace, Threads::All);
    c
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::philox::{Philox, Purpose};
    use approx::assert_relative_eq;

    /// Column means taken out.
    fn centred(values: &[f64], columns: usize) -> (Vec<f64>, Vec<f64>) {
        let rows = values.len() / columns;
        let mean: Vec<f64> =
            (0..columns).map(|j| values.iter().skip(j).step_by(columns).sum::<f64>() / rows as f64).collect();
        (values.iter().enumerate().map(|(i, v)| v - mean[i % columns]).collect(), mean)
    }

    /// Over rows and over features, the formula agrees with fitting again without each row.
    #[test]
    fn leave_one_out_is_what_refitting_gives() {
        let (n, m) = (20, 2);
        for d in [6, 30] {
            let mut r = Philox::new(5, Purpose::Test, d as u64, 0);
            let mut normal = |count: usize| (0..count).map(|_| f64::from(r.normal())).collect::<Vec<f64>>();
            let (x, y) = (normal(n * d), normal(n * m));
            let (cx, cy) = (centred(&x, d).0, centred(&y, m).0);
            let all = Ridge::new(Mat::rows(&cx, [n, d])).penalised(7.0).unwrap();
            let errors = all.left_out_errors(Mat::rows(&cy, [n, m]));
            for out in [0, 7, 19] {
                let without = |v: &[f64], columns: usize| {
                    centred(&[&v[..out * columns], &v[(out + 1) * columns..]].concat(), columns)
                };
                let ((fx, mx), (fy, my)) = (without(&x, d), without(&y, m));
                let fitted = Ridge::new(Mat::rows(&fx, [n - 1, d])).penalised(7.0).unwrap();
                let w = fitted.weights(Mat::rows(&fy, [n - 1, m]));
                for k in 0..m {
                    let terms = (0..d).map(|j| (x[out * d + j] - mx[j]) * w[j * m + k]);
                    let predicted = my[k] + terms.sum::<f64>();
                    assert_relative_eq!(y[out * m + k] - predicted, errors[out * m + k], max_relative = 1e-9);
                }
            }
        }
    }
}
