//! Noise: in the brain, where every image has some, and in the air around a head, where ghosts, ringing and spikes show.
use super::{Measures, State, mean_and_sd, percentile, scene::Scene, tissue::Tissue};

/// Of the hat, no more than this share may have one exact value for it to be air and not padding.
const BLANK: f64 = 0.99;

pub(super) fn measure(scene: &Scene, t: &Tissue, m: &mut Measures) {
    let white = t.mean[2];
    m.set("noise", grain(scene) / white);
    let Some(head) = &scene.head else { return };
    let hat = scene.present(head.look_up(&head.hat, scene.shape, scene.spacing));
    let mut air: Vec<f32> = scene.data.iter().zip(&hat).filter(|(_, h)| **h).map(|(v, _)| *v).collect();
    if air.len() < 1000 {
        return;
    }
    let middle = percentile(&mut air, 0.5);
    let blank = air.iter().filter(|&&v| f64::from(v) == middle).count() as f64 / air.len() as f64;
    m.set("air_blank", blank);
    if blank > BLANK {
        return;
    }
    let (mean, sd) = mean_and_sd(air.iter().map(|&v| f64::from(v)));
    m.set("air_sd", sd / white);
    m.set("air_mean", mean / white);
    m.set("cnr", (white - t.mean[1]) / (sd * sd + t.sd[1].powi(2) + t.sd[2].powi(2)).sqrt());
    let [structure, ghost] = structure(scene, &hat);
    m.set("air_structure", structure / white);
    m.set("air_coherence", ghost);
    let mut gaps: Vec<f32> = air.iter().map(|&v| (f64::from(v) - middle).abs() as f32).collect();
    let mad = percentile(&mut gaps, 0.5);
    // Whole numbers that are mostly 0 have no spread that could be told from rounding.
    if mad > 0.0 {
        m.set("snr_dietrich", RAYLEIGH * white / mad);
    }
    if scene.state == State::WholeHead {
        let inside = head.look_up(&head.inside, scene.shape, scene.spacing);
        let mut bright: Vec<f32> =
            scene.data.iter().zip(&inside).filter(|(_, i)| **i).map(|(v, _)| *v).collect();
        let head = percentile(&mut bright, 0.5);
        if middle > 0.0 {
            m.set("fber", (head / middle).powi(2));
        }
        m.set("qi1", artefacts(scene, &hat, &air));
    }
}

/// sqrt((4 - π) / 2): the SD of Rayleigh noise in air over that of the normal noise it came from.
const RAYLEIGH: f64 = 0.655_136_4;

/// The SD of what changes sign along all three axes from voxel to voxel, over blocks of 2 x 2 x 2 inside the brain: the
/// finest Haar wavelet, where anatomy leaves little (Donoho 1994).
fn grain(scene: &Scene) -> f64 {
    let [nx, ny, nz] = scene.shape;
    let [_, sy, sz] = scene.steps();
    let mut found = Vec::new();
    for z in (0..nz.saturating_sub(1)).step_by(2) {
        for y in (0..ny.saturating_sub(1)).step_by(2) {
            for x in (0..nx.saturating_sub(1)).step_by(2) {
                let at = x + sy * y + sz * z;
                let block = [0, 1, sy, sy + 1, sz, sz + 1, sz + sy, sz + sy + 1];
                if block.iter().all(|b| scene.brain[at + b]) {
                    let [a, b, c, d, e, f, g, h] = block.map(|b| scene.data[at + b]);
                    found.push((a - b - c + d - e + f + g - h).abs());
                }
            }
        }
    }
    percentile(&mut found, 0.5) / 8.0_f64.sqrt() / 0.674_49
}

/// How much of the air's variation lasts over 3 x 3 x 3 voxels: the SD of such means, less what pure noise would leave,
/// and that as a share of the whole variance. Ghosts, ringing and wrapped tissue last; noise does not.
fn structure(scene: &Scene, hat: &[bool]) -> [f64; 2] {
    let [nx, ny, nz] = scene.shape;
    let [_, sy, sz] = scene.steps();
    let (mut means, mut values) = (Vec::new(), Vec::new());
    for z in (1..nz.saturating_sub(1)).step_by(3) {
        for y in (1..ny.saturating_sub(1)).step_by(3) {
            for x in (1..nx.saturating_sub(1)).step_by(3) {
                let at = x + sy * y + sz * z;
                if !hat[at] {
                    continue;
                }
                let mut sum = 0.0;
                for row in [0, sz, 2 * sz].into_iter().flat_map(|z| [0, sy, 2 * sy].map(|y| y + z)) {
                    let from = at - sz - sy - 1 + row;
                    sum += scene.data[from..from + 3].iter().map(|&v| f64::from(v)).sum::<f64>();
                }
                means.push(sum / 27.0);
                values.push(f64::from(scene.data[at]));
            }
        }
    }
    let variance = mean_and_sd(values.into_iter()).1.powi(2);
    let lasting = mean_and_sd(means.into_iter()).1.powi(2) - variance / 27.0;
    [lasting.max(0.0).sqrt(), if variance > 0.0 { (lasting / variance).clamp(0.0, 1.0) } else { 0.0 }]
}

/// Robust standard deviations over the air's median from which a voxel is no noise (MRIQC).
const BRIGHT: f64 = 10.0;

/// MRIQC's QI1 (Mortamet 2009): the share of the hat that is far brighter than its noise and holds together when opened
/// by a cross of 7 voxels.
fn artefacts(scene: &Scene, hat: &[bool], air: &[f32]) -> f64 {
    let mut values: Vec<f32> = air.iter().copied().filter(|v| *v > 0.0).collect();
    let middle = percentile(&mut values, 0.5) as f32;
    values.iter_mut().for_each(|v| *v = (*v - middle).abs());
    let threshold = middle + (BRIGHT * 1.4826 * percentile(&mut values, 0.5)) as f32;
    let bright: Vec<bool> = scene.data.iter().zip(hat).map(|(&v, &h)| h && v > threshold).collect();
    let steps = scene.steps();
    let cross = |of: &[bool], i: usize, wanted: bool| {
        (0..3).any(|r| {
            let at = i / steps[r] % scene.shape[r];
            (at > 0 && of[i - steps[r]] == wanted) || (at + 1 < scene.shape[r] && of[i + steps[r]] == wanted)
        })
    };
    let core: Vec<bool> = (0..bright.len()).map(|i| bright[i] && !cross(&bright, i, false)).collect();
    let opened = (0..core.len()).filter(|&i| hat[i] && (core[i] || cross(&core, i, true))).count();
    opened as f64 / air.len() as f64
}
