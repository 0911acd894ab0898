//! Distortions of the image itself: brightness, noise, sharpness, and voxels that are lost.
use super::{
    canvas::Canvas,
    draw::{Source, TERMS},
    recipe::Side,
};
use std::f64::consts::TAU;

/// The Legendre polynomial of `degree` at `x`, scaled to unit mean square over -1..1.
fn legendre(degree: usize, x: f64) -> f64 {
    let value = match degree {
        0 => 1.0,
        1 => x,
        2 => 1.5 * x * x - 0.5,
        _ => 2.5 * x * x * x - 1.5 * x,
    };
    value * (2.0 * degree as f64 + 1.0).sqrt()
}

/// Multiplies by a field whose logarithm is a polynomial of the third order over the head's box: of mean 0 there, so
/// that the field's geometric mean is 1, and of a standard deviation that is the norm of `coefficients`. Beyond the
/// head it goes on as it is at the head's edge.
pub(super) fn bias_field(canvas: &mut Canvas, coefficients: &[f64]) {
    let tables: [Vec<[f64; 4]>; 3] = [0, 1, 2].map(|axis| {
        let on_head = (0..canvas.shape[axis]).map(|voxel| canvas.on_head(axis, voxel));
        on_head.map(|x| [0, 1, 2, 3].map(|degree| legendre(degree, x))).collect()
    });
    let nx = canvas.shape[0];
    canvas.each_plane(|z, plane| {
        for (y, row) in plane.chunks_mut(nx).enumerate() {
            // Along a row only x varies: a polynomial of four coefficients.
            let mut along_x = [0.0; 4];
            for ([i, j, k], c) in TERMS.into_iter().zip(coefficients) {
                along_x[i] += c * tables[1][y][j] * tables[2][z][k];
            }
            for (v, powers) in row.iter_mut().zip(&tables[0]) {
                let log: f64 = along_x.iter().zip(powers).map(|(c, p)| c * p).sum();
                *v *= log.exp() as f32;
            }
        }
    });
}

/// Noise of standard deviation `sigma` in both channels of the receiver, of which the image is the magnitude: Rician
/// in tissue, Rayleigh in air.
pub(super) fn noise(canvas: &mut Canvas, sigma: f64, source: Source) {
    let sigma = sigma * f64::from(canvas.bright);
    canvas.each_plane(|z, plane| {
        let mut r = source.plane(z as u32);
        for v in plane {
            // Box and Muller: two normals, one for each channel.
            let radius = sigma * (-2.0 * (1.0 - f64::from(r.uniform())).ln()).sqrt();
            let (sin, cos) = (TAU * f64::from(r.uniform())).sin_cos();
            *v = (f64::from(*v) + radius * cos).hypot(radius * sin) as f32;
        }
    });
}

/// A discrete Gaussian of `variance` in voxels², from its centre outwards: exp(-t) I_n(t), which has just that
/// variance however small it is (Lindeberg 1990). By Miller's recurrence, from far out inwards.
fn gaussian(variance: f64) -> Vec<f64> {
    let radius = (4.0 * variance.sqrt()).ceil() as usize + 1;
    let far = radius + 20 + (4.0 * variance.sqrt()) as usize;
    let (mut outer, mut here) = (0.0, 1e-300);
    let mut weights = vec![0.0; far + 1];
    for n in (0..=far).rev() {
        weights[n] = here;
        (outer, here) = (here, outer + 2.0 * n as f64 / variance * here);
        if here > 1e200 {
            (outer, here) = (outer * 1e-250, here * 1e-250);
            weights[n..].iter_mut().for_each(|w| *w *= 1e-250);
        }
    }
    weights.truncate(radius + 1);
    let total = weights[0] + 2.0 * weights[1..].iter().sum::<f64>();
    weights.iter().map(|w| w / total).collect()
}

/// Convolves with a Gaussian of full width `fwhm_mm` at half maximum, the same in all directions.
pub(super) fn blur(canvas: &mut Canvas, fwhm_mm: f64) {
    if fwhm_mm == 0.0 {
        return;
    }
    let sigma_mm = fwhm_mm / (8.0 * 2.0_f64.ln()).sqrt();
    for axis in 0..3 {
        let n = canvas.shape[axis];
        let weights: Vec<f32> =
            gaussian((sigma_mm / canvas.spacing[axis]).powi(2)).iter().map(|&w| w as f32).collect();
        let radius = weights.len() - 1;
        canvas.lines(
            axis,
            || vec![0.0; n + 2 * radius],
            |padded, _, line| {
                padded[..radius].fill(line[0]);
                padded[radius..radius + n].copy_from_slice(line);
                padded[radius + n..].fill(line[n - 1]);
                for (i, v) in line.iter_mut().enumerate() {
                    let centre = i + radius;
                    let both = weights[1..].iter().enumerate();
                    *v = weights[0] * padded[centre]
                        + both
                            .map(|(d, w)| w * (padded[centre - d - 1] + padded[centre + d + 1]))
                            .sum::<f32>();
                }
            },
        );
    }
}

/// Averages over slices `factor` voxels thick, and interpolates between their centres.
pub(super) fn anisotropy(canvas: &mut Canvas, axis: usize, factor: f64) {
    let n = canvas.shape[axis];
    let count = (n as f64 / factor).ceil() as usize;
    // The slices lie evenly about the middle of the field of view, so that either end may come first.
    let first = (n as f64 - count as f64 * factor) / 2.0;
    canvas.lines(
        axis,
        || vec![0.0; count],
        |slices, _, line| {
            for (s, mean) in slices.iter_mut().enumerate() {
                let low = (first + s as f64 * factor).max(0.0);
                let high = (first + (s + 1) as f64 * factor).min(n as f64);
                let mut sum = 0.0;
                for (i, &v) in line.iter().enumerate().take(high.ceil() as usize).skip(low as usize) {
                    sum += f64::from(v) * (high.min(i as f64 + 1.0) - low.max(i as f64));
                }
                *mean = sum / (high - low);
            }
            for (i, v) in line.iter_mut().enumerate() {
                let at = ((i as f64 + 0.5 - first) / factor - 0.5).clamp(0.0, (count - 1) as f64);
                let (below, part) = (at as usize, at.fract());
                let above = (below + 1).min(count - 1);
                *v = (slices[below] * (1.0 - part) + slices[above] * part) as f32;
            }
        },
    );
}

/// Sets a slab of slices, `fraction` of the head thick, to 0.
pub(super) fn slab_loss(canvas: &mut Canvas, axis: usize, fraction: f64, position: f64) {
    let [low, high] = canvas.head[axis];
    let thick = fraction * (high - low);
    let from = low + position * (high - low - thick);
    let lost = canvas.planes(axis, [from, from + thick]);
    canvas.lines(axis, || (), |(), _, line| line[lost.clone()].fill(0.0));
}

/// The planes that are left when the field of view ends `mm` inside the head, but no more than half of the head is
/// lost.
fn left(canvas: &Canvas, side: Side, mm: f64) -> (usize, std::ops::Range<usize>) {
    let (axis, upper) = side.end();
    let [low, high] = canvas.head[axis];
    let cut = mm.min(canvas.extent(axis) / 2.0) / canvas.spacing[axis];
    let n = canvas.shape[axis];
    let range = if upper {
        0..canvas.planes(axis, [0.0, high - cut]).end
    } else {
        canvas.planes(axis, [low + cut, n as f64]).start..n
    };
    (axis, range)
}

/// Cuts the field of view off `mm` inside the head.
pub(super) fn truncation(canvas: &mut Canvas, side: Side, mm: f64) {
    let (axis, range) = left(canvas, side, mm);
    canvas.crop(axis, range);
}

/// Cuts the field of view off as [`truncation`] does, and adds what lies outside where it appears to lie: a field of
/// view further on.
pub(super) fn wrap_around(canvas: &mut Canvas, side: Side, mm: f64) {
    let (axis, range) = left(canvas, side, mm);
    let n = canvas.shape[axis];
    canvas.lines(
        axis,
        || (),
        |(), _, line| {
            for outside in (0..range.start).chain(range.end..n) {
                let cycles = outside as isize - range.start as isize;
                line[range.start + cycles.rem_euclid(range.len() as isize) as usize] += line[outside];
            }
        },
    );
    canvas.crop(axis, range);
}
