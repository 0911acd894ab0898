//! How finely the image is resolved: smoothness, gradients, and the spectrum along each axis.
use super::{Measures, mean_and_sd, percentile, scene::Scene, tissue::Tissue};
use rustfft::{FftPlanner, num_complex::Complex32};

/// Lines through the brain that the spectrum along an axis is the mean of.
const LINES: usize = 4096;

pub(super) fn measure(scene: &Scene, t: &Tissue, m: &mut Measures) {
    let white = t.mean[2];
    let width = fwhm(scene);
    for (name, mm) in ["fwhm_x", "fwhm_y", "fwhm_z"].into_iter().zip(width) {
        m.set(name, mm);
    }
    let mean = width.iter().product::<f64>().cbrt();
    m.set("fwhm", mean);
    let (least, most) =
        (width.iter().copied().fold(f64::MAX, f64::min), width.iter().copied().fold(0.0, f64::max));
    m.set("fwhm_ratio", most / least);
    let mut gradient = gradients(scene);
    let shares = histogram(&gradient, white);
    let entropy = shares.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum::<f64>();
    m.set("gradient_entropy", entropy / (shares.len() as f64).ln());
    m.set("gradient_median", percentile(&mut gradient, 0.5) / white);
    m.set("sharpness", percentile(&mut gradient, 0.95) / white);
    let (middle, spread) = mean_and_sd(gradient.iter().map(|&g| f64::from(g)));
    m.set("gradient_variation", spread / middle);
    let mut worst = [0.0_f64; 2];
    for (r, axis) in ["x", "y", "z"].into_iter().enumerate() {
        let Some(power) = spectrum(scene, r) else { continue };
        let half = power.len() / 2;
        let fine = power[half..].iter().sum::<f64>() / power[1..].iter().sum::<f64>();
        m.set(&format!("fine_{axis}"), fine);
        let [comb, spike] = roughness(&power);
        worst = [worst[0].max(comb), worst[1].max(spike)];
    }
    m.set("comb", worst[0]);
    m.set("spike", worst[1]);
}

/// The full width at half maximum of the normal kernel that would leave neighbours in the brain as alike as they are
/// (AFNI's 3dFWHMx, Forman 1995), in millimetres.
fn fwhm(scene: &Scene) -> [f64; 3] {
    let (_, sd) = mean_and_sd(scene.inside().iter().map(|&v| f64::from(v)));
    let steps = scene.steps();
    [0, 1, 2].map(|r| {
        let (mut n, mut squares) = (0.0, 0.0);
        for (i, &inside) in scene.brain.iter().enumerate().take(scene.brain.len() - steps[r]) {
            if inside && scene.brain[i + steps[r]] && i / steps[r] % scene.shape[r] + 1 < scene.shape[r] {
                n += 1.0;
                squares += (f64::from(scene.data[i + steps[r]]) - f64::from(scene.data[i])).powi(2);
            }
        }
        // White noise, and what is rougher, has no width that differences could tell.
        let alike = (1.0 - 0.5 * squares / n / (sd * sd)).clamp(1e-6, 1.0 - 1e-9);
        (8.0 * 2.0_f64.ln()).sqrt() * scene.spacing[r] * (-1.0 / (4.0 * alike.ln())).sqrt()
    })
}

/// Magnitudes of central differences, per millimetre, where all six neighbours are in the brain.
fn gradients(scene: &Scene) -> Vec<f32> {
    let (steps, [nx, ny, nz]) = (scene.steps(), scene.shape);
    let scale = scene.spacing.map(|mm| (0.5 / mm) as f32);
    let mut found = Vec::new();
    for z in 1..nz.saturating_sub(1) {
        for y in 1..ny.saturating_sub(1) {
            let row = steps[1] * y + steps[2] * z;
            for i in row + 1..row + nx.saturating_sub(1).max(1) {
                if scene.brain[i] && steps.iter().all(|s| scene.brain[i - s] && scene.brain[i + s]) {
                    let along = |r: usize| scale[r] * (scene.data[i + steps[r]] - scene.data[i - steps[r]]);
                    found.push((along(0).powi(2) + along(1).powi(2) + along(2).powi(2)).sqrt());
                }
            }
        }
    }
    found
}

/// Shares of 32 bins from 0 to half of white matter per millimetre.
fn histogram(gradient: &[f32], white: f64) -> Vec<f64> {
    let mut shares = vec![0.0; 32];
    for &g in gradient {
        shares[((f64::from(g) / white * 64.0) as usize).min(31)] += 1.0 / gradient.len() as f64;
    }
    shares
}

/// The mean power along an axis, from constant to the finest wave, over lines that pass through the brain; `None` for an
/// axis too short to have a spectrum.
fn spectrum(scene: &Scene, r: usize) -> Option<Vec<f64>> {
    let (n, steps) = (scene.shape[r], scene.steps());
    if n < 32 {
        return None;
    }
    let (a, b) = ((r + 1) % 3, (r + 2) % 3);
    let starts: Vec<usize> = (0..scene.shape[b])
        .flat_map(|j| (0..scene.shape[a]).map(move |i| i * steps[a] + j * steps[b]))
        .filter(|from| (0..n).step_by(4).any(|i| scene.brain[from + i * steps[r]]))
        .collect();
    let fft = FftPlanner::<f32>::new().plan_fft_forward(n);
    let mut scratch = vec![Complex32::ZERO; fft.get_inplace_scratch_len()];
    let mut line = vec![Complex32::ZERO; n];
    let mut power = vec![0.0; n / 2 + 1];
    for from in starts.iter().step_by(starts.len().div_ceil(LINES).max(1)) {
        // A window, or the step from one end of the field of view to the other would fill the spectrum.
        for (i, v) in line.iter_mut().enumerate() {
            let window = (std::f32::consts::PI * (i as f32 + 0.5) / n as f32).sin();
            *v = Complex32::new(scene.data[from + i * steps[r]] * window, 0.0);
        }
        fft.process_with_scratch(&mut line, &mut scratch);
        power.iter_mut().zip(&line).for_each(|(p, v)| *p += f64::from(v.norm_sqr()));
    }
    Some(power)
}

/// How far the logarithm of the power strays from the median of its 9 neighbours: the mean distance (ghosts dim or shift
/// every so many lines of k-space), and the greatest rise (a spike). The coarsest waves are the head's own shape.
fn roughness(power: &[f64]) -> [f64; 2] {
    let log: Vec<f64> = power.iter().map(|p| (p + f64::MIN_POSITIVE).ln()).collect();
    let strays: Vec<f64> = (8..log.len().saturating_sub(4))
        .map(|k| {
            let mut near: Vec<f64> = log[k - 4..=k + 4].to_vec();
            near.sort_unstable_by(f64::total_cmp);
            log[k] - near[4]
        })
        .collect();
    let mean = strays.iter().map(|s| s.abs()).sum::<f64>() / strays.len().max(1) as f64;
    [mean, strays.iter().copied().fold(0.0, f64::max)]
}
