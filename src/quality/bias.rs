//! The strength of the bias field: how much brighter one part of the same tissue is than another.
use super::{Measures, mean_and_sd, percentile, scene::Scene, tissue::Tissue};
use crate::machine::cholesky::Cholesky;

/// Voxels that the field is fitted to.
const SAMPLE: usize = 40_000;
/// Terms of a polynomial of order 2 in x, y and z.
const TERMS: usize = 10;
/// Rounds of telling tissues apart and fitting.
const ROUNDS: usize = 4;
/// Added to the sums of squares, so that voxels in one plane have a field, too.
const LEAST: f64 = 1e-3;

pub(super) fn measure(scene: &Scene, t: &Tissue, m: &mut Measures) {
    let inside: Vec<usize> =
        (0..scene.brain.len()).filter(|&i| scene.brain[i] && scene.data[i] > 0.0).collect();
    let step = inside.len().div_ceil(SAMPLE).max(1);
    let [sx, sy, _] = scene.shape;
    let terms = |i: usize| {
        let at = [i % sx, i / sx % sy, i / (sx * sy)];
        let [x, y, z] = [0, 1, 2].map(|r| 2.0 * at[r] as f64 / scene.shape[r] as f64 - 1.0);
        [1.0, x, y, z, x * x, y * y, z * z, x * y, y * z, x * z]
    };
    let rows: Vec<([f64; TERMS], f64)> =
        inside.iter().step_by(step).map(|&i| (terms(i), f64::from(scene.data[i]).ln())).collect();
    let field = |row: &[f64; TERMS], w: &[f64; TERMS]| row.iter().zip(w).map(|(a, b)| a * b).sum::<f64>();
    let (grey, white) = (t.mean[1].max(f64::MIN_POSITIVE).ln(), t.mean[2].max(f64::MIN_POSITIVE).ln());
    // Fluid and vessels lie further from both tissues than these from each other.
    let reach = (white - grey).max(0.05);
    let mut w = [0.0; TERMS];
    for _ in 0..ROUNDS {
        let (mut normal, mut right) = ([[0.0; TERMS]; TERMS], [0.0; TERMS]);
        for (row, log) in &rows {
            let flat = log - field(row, &w);
            let tissue = if (flat - grey).abs() < (flat - white).abs() { grey } else { white };
            if (flat - tissue).abs() > reach {
                continue;
            }
            for (i, a) in row.iter().enumerate() {
                right[i] += a * (log - tissue);
                normal[i].iter_mut().zip(row).for_each(|(n, b)| *n += a * b);
            }
        }
        (0..TERMS).for_each(|i| normal[i][i] += LEAST);
        let Some(root) = Cholesky::of(normal.concat(), TERMS) else { return };
        let solved = root.solve(&right);
        w = std::array::from_fn(|i| solved[i]);
    }
    let mut fields: Vec<f32> = rows.iter().map(|(row, _)| field(row, &w) as f32).collect();
    m.set("bias", mean_and_sd(fields.iter().map(|&f| f64::from(f))).1);
    m.set("bias_range", (percentile(&mut fields, 0.95) - percentile(&mut fields, 0.05)).exp());
}
