//! Three tissues from the brain's intensities: a mixture of normal distributions, and what follows from it.
use super::{Measures, State, percentile, scene::Scene};

/// Bins that the intensities are counted into.
const BINS: usize = 512;
/// Rounds of expectation and maximisation; the means have settled long before.
const ROUNDS: usize = 80;

/// Cerebrospinal fluid, grey and white matter of a T1-weighted image: ascending means.
#[derive(Clone, Debug)]
pub(super) struct Tissue {
    pub(super) mean: [f64; 3],
    pub(super) sd: [f64; 3],
    pub(super) share: [f64; 3],
    pub(super) voxels: usize,
}

impl Tissue {
    /// Fitted between the 0.1th and the 99.9th percentile. Starts from the 10th, 45th and 80th.
    pub(super) fn fit(values: &[f32]) -> Tissue {
        let mut sorted = values.to_vec();
        let mut at = |q: f64| percentile(&mut sorted, q);
        let (low, high) = (at(0.001), at(0.999));
        let width = ((high - low) / BINS as f64).max(f64::MIN_POSITIVE);
        let mut counts = [0.0; BINS];
        for &v in values {
            let v = f64::from(v);
            if (low..=high).contains(&v) {
                counts[(((v - low) / width) as usize).min(BINS - 1)] += 1.0;
            }
        }
        let mut t = Tissue {
            mean: [at(0.1), at(0.45), at(0.8)],
            sd: [((at(0.95) - at(0.05)) / 6.0).max(width); 3],
            share: [0.2, 0.4, 0.4],
            voxels: values.len(),
        };
        for _ in 0..ROUNDS {
            let mut sums = [[0.0; 3]; 3];
            let scale = [0, 1, 2].map(|c| t.share[c] / t.sd[c]);
            for (b, &n) in counts.iter().enumerate().filter(|(_, n)| **n > 0.0) {
                let v = low + (b as f64 + 0.5) * width;
                let p = [0, 1, 2].map(|c| scale[c] * (-0.5 * ((v - t.mean[c]) / t.sd[c]).powi(2)).exp());
                let total = p.iter().sum::<f64>();
                if total > 0.0 {
                    for (sums, p) in sums.iter_mut().zip(p) {
                        let w = n * p / total;
                        *sums = [sums[0] + w, sums[1] + w * v, sums[2] + w * v * v];
                    }
                }
            }
            let all: f64 = sums.iter().map(|s| s[0]).sum();
            for (c, [n, first, second]) in sums.into_iter().enumerate().filter(|(_, s)| s[0] > 0.0) {
                t.mean[c] = first / n;
                // A tissue narrower than two bins is one value: a constant region, not noise.
                t.sd[c] = (second / n - t.mean[c].powi(2)).max(0.0).sqrt().max(width);
                t.share[c] = n / all;
            }
        }
        let mut order = [0, 1, 2];
        order.sort_by(|&a, &b| t.mean[a].total_cmp(&t.mean[b]));
        Tissue {
            mean: order.map(|c| t.mean[c]),
            sd: order.map(|c| t.sd[c]),
            share: order.map(|c| t.share[c]),
            ..t
        }
    }
}

pub(super) fn measure(scene: &Scene, t: &Tissue, m: &mut Measures) {
    let [fluid, grey, white] = t.mean;
    for (c, name) in ["csf", "gm", "wm"].into_iter().enumerate() {
        let n = (t.share[c] * t.voxels as f64).max(2.0);
        m.set(&format!("snr_{name}"), t.mean[c] / (t.sd[c] * (n / (n - 1.0)).sqrt()));
        m.set(&format!("fraction_{name}"), t.share[c]);
    }
    m.set("cjv", (t.sd[1] + t.sd[2]) / (white - grey));
    m.set("cnr_tissue", (white - grey) / t.sd[1].hypot(t.sd[2]));
    m.set("contrast", (white - grey) / white);
    m.set("contrast_csf", (grey - fluid) / white);
    let mut values = if scene.state == State::SkullStripped { scene.inside() } else { scene.data.to_vec() };
    m.set("wm2max", white / percentile(&mut values, 0.9995));
    m.set("efc", efc(&values));
    let inside = scene.inside();
    let most = inside.iter().copied().fold(f32::MIN, f32::max);
    let at_most = inside.iter().filter(|&&v| v >= most).count();
    m.set("clipped", (at_most - 1) as f64 / inside.len() as f64);
    let (mean, sd) = super::mean_and_sd(inside.iter().map(|&v| f64::from(v)));
    let kurtosis = inside.iter().map(|&v| ((f64::from(v) - mean) / sd).powi(4)).sum::<f64>();
    m.set("kurtosis", kurtosis / inside.len() as f64 - 3.0);
    m.set("variation", sd / mean);
}

/// The entropy of |x| / sqrt(Σ x²) over the most it can be (Atkinson 1997, as MRIQC has it): 1 when all voxels are
/// alike, 0 when one holds all.
pub(super) fn efc(values: &[f32]) -> f64 {
    let n = values.len() as f64;
    let root = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let term = |v: f32| {
        let p = f64::from(v.abs()) / root;
        if p > 0.0 { p * p.ln() } else { 0.0 }
    };
    values.iter().map(|&v| term(v)).sum::<f64>() / (n.sqrt() * (1.0 / n.sqrt()).ln())
}
