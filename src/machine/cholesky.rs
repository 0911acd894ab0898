//! Positive definite matrices.
use rayon::prelude::*;

/// A positive definite matrix as `l lᵀ`, l lower triangular.
pub struct Cholesky {
    l: Vec<f64>,
    n: usize,
}

impl Cholesky {
    /// Of a symmetric matrix `[n, n]`; `None` when it is not positive definite.
    pub fn of(mut a: Vec<f64>, n: usize) -> Option<Cholesky> {
        for j in 0..n {
            let (above, below) = a.split_at_mut((j + 1) * n);
            let row = &mut above[j * n..];
            let square = row[j] - row[..j].iter().map(|x| x * x).sum::<f64>();
            if square <= 0.0 || square.is_nan() {
                return None;
            }
            let diagonal = square.sqrt();
            row[j] = diagonal;
            let row = &above[j * n..j * n + j];
            below.par_chunks_exact_mut(n).for_each(|other| {
                let inner: f64 = row.iter().zip(&other[..j]).map(|(x, y)| x * y).sum();
                other[j] = (other[j] - inner) / diagonal;
            });
        }
        Some(Cholesky { l: a, n })
    }
    /// `x` with `l lᵀ x = b`.
    pub fn solve(&self, b: &[f64]) -> Vec<f64> {
        let mut x = b.to_vec();
        self.solve_in_place(&mut x);
        x
    }
    /// The inverse, `[n, n]`, column by column.
    pub fn inverse(&self) -> Vec<f64> {
        let mut inverse = vec![0.0; self.n * self.n];
        inverse.par_chunks_exact_mut(self.n).enumerate().for_each(|(column, x)| {
            x[column] = 1.0;
            self.solve_in_place(x);
        });
        inverse
    }
    fn solve_in_place(&self, x: &mut [f64]) {
        let (l, n) = (&self.l, self.n);
        for i in 0..n {
            let inner: f64 = l[i * n..i * n + i].iter().zip(&x[..i]).map(|(l, x)| l * x).sum();
            x[i] = (x[i] - inner) / l[i * n + i];
        }
        for i in (0..n).rev() {
            let inner: f64 = (i + 1..n).map(|k| l[k * n + i] * x[k]).sum();
            x[i] = (x[i] - inner) / l[i * n + i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_positive_definite_matrices_have_a_root() {
        let root = Cholesky::of(vec![4.0, 2.0, 2.0, 3.0], 2).unwrap();
        approx::assert_relative_eq!(&root.solve(&[8.0, 8.0])[..], &[1.0, 2.0][..], epsilon = 1e-15);
        approx::assert_relative_eq!(&root.inverse()[..], &[0.375, -0.25, -0.25, 0.5][..], epsilon = 1e-15);
        assert!(Cholesky::of(vec![1.0, 2.0, 2.0, 4.0], 2).is_none());
        assert!(Cholesky::of(vec![f64::NAN], 1).is_none());
    }
}
