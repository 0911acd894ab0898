//! From a synthetic person to a T1-weighted image: tissue shares, contrast, bias field and noise.
use super::anatomy::{Anatomy, Depths, SCALP, SKULL};
use crate::image::Volume;
use crate::machine::philox::{Philox, Purpose, quick_normal};

/// Voxel grid of a file: voxels along each axis, and the affine to RAS millimetres around the head's centre.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    pub shape: [usize; 3],
    pub affine: [[f64; 4]; 4],
}

/// Tissue volumes in millilitres, from the exact shapes.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Tissues {
    /// Cortex, deep nuclei and cerebellar cortex.
    pub grey_ml: f64,
    /// White matter with the brain stem.
    pub white_ml: f64,
    /// Fluid of sulci and fissures, inside the hull of the brain.
    pub sulci_ml: f64,
    /// All four ventricles.
    pub ventricles_ml: f64,
}

impl Tissues {
    /// Everything inside the hull of the brain, as the brain mask covers it.
    pub fn brain_ml(&self) -> f64 {
        self.grey_ml + self.white_ml + self.sulci_ml + self.ventricles_ml
    }
}

/// Signal of each tissue relative to white matter, as an MPRAGE at 3 T shows it.
struct Contrast {
    grey: f32,
    deep: f32,
    fluid: f32,
    muscle: f32,
    fat: f32,
}

/// Volumes of one person: the image in scanner units (white matter near 600), the brain mask (0 or 1), and the
/// tissue volumes. The same (`seed`, `subject`) gives the same head on every grid.
pub(super) fn render(anatomy: &Anatomy, grid: &Grid, seed: u64, subject: u32) -> (Volume, Volume, Tissues) {
    let mut r = Philox::new(seed, Purpose::Phantom, 2, subject);
    let contrast = Contrast {
        grey: 0.70 + 0.03 * r.normal(),
        deep: 0.80 + 0.02 * r.normal(),
        fluid: 0.24 + 0.03 * r.normal(),
        muscle: 0.52,
        fat: 1.15 + 0.08 * r.normal(),
    };
    let (gain, noise) = (600.0 * (0.35 * r.normal()).exp(), r.between(0.015, 0.04));
    // Receive coils shade the image: a quadratic in units of 100 mm.
    let shade: [f32; 6] = [0; 6].map(|_| 0.10 * r.normal());

    let spacing = (0..3).map(|j| (0..3).map(|i| grid.affine[i][j].powi(2)).sum::<f64>()).product::<f64>();
    let voxel_ml = spacing.sqrt() / 1000.0;
    let blur = spacing.powf(1.0 / 6.0) as f32;

    let template = anatomy.to_template();
    let [nx, ny, nz] = grid.shape;
    let count = nx * ny * nz;
    let (mut image, mut mask) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let mut tissues = Tissues::default();
    for (k, j, i) in (0..nz).flat_map(|k| (0..ny).flat_map(move |j| (0..nx).map(move |i| (k, j, i)))) {
        let index = [i as f64, j as f64, k as f64, 1.0];
        let mm = [0, 1, 2].map(|row| (0..4).map(|c| grid.affine[row][c] * index[c]).sum::<f64>() as f32);
        let p = template.map(|row| row[0] * mm[0] + row[1] * mm[1] + row[2] * mm[2]);
        let depths = anatomy.depths(p);
        let signal = contrast.signal(anatomy, &depths, blur, voxel_ml, &mut tissues);
        let [x, y, z] = mm.map(|v| v / 100.0);
        let bias = shade[0] * x
            + shade[1] * y
            + shade[2] * z
            + shade[3] * x * y
            + shade[4] * y * z
            + shade[5] * (x * x - z * z);
        // Magnitude of a complex signal with noise in both channels (Rice).
        let shaded = signal * (1.0 + bias).max(0.3) + noise * quick_normal(r.word());
        image.push(gain * shaded.hypot(noise * quick_normal(r.word())));
        mask.push(f32::from(depths.brain > 0.0));
    }
    let volume = |data| Volume { shape: grid.shape, affine: grid.affine, data };
    (volume(image), volume(mask), tissues)
}

impl Contrast {
    /// Noiseless signal at one voxel; counts its tissues. Each structure covers what lies below it by its share
    /// of the voxel, a ramp one voxel (`blur` mm) wide across its surface: partial volume.
    fn signal(&self, anatomy: &Anatomy, d: &Depths, blur: f32, voxel_ml: f64, t: &mut Tissues) -> f32 {
        let share = |depth: f32| (0.5 + depth / blur).clamp(0.0, 1.0);
        let over = |below: f32, tissue: f32, depth: f32| below + (tissue - below) * share(depth);
        let outer = -d.brain - anatomy.gap;
        let skin = (SKULL + SCALP - outer).max(d.face);
        if skin < -blur {
            return 0.0;
        }
        let mut v = over(0.0, self.fat, skin);
        v = over(v, self.muscle, d.face - 5.0);
        v = over(v, self.fluid, d.eye);
        v = over(v, 0.07, SKULL - outer);
        v = over(v, 0.40, 1.2 - (outer - SKULL / 2.0).abs());
        v = over(v, self.fluid, -outer);
        if d.brain < -blur {
            return v;
        }
        v = over(v, 0.92, d.stem);
        v = over(v, self.grey, d.cerebellum);
        v = over(v, 0.97, d.cerebellar_white);
        let deep_white = d.cortex - anatomy.cortex;
        let mut cerebrum = over(self.fluid, self.grey, d.cortex);
        cerebrum = over(cerebrum, 1.0, deep_white);
        v += (cerebrum - v) * share(d.cerebrum);
        v = over(v, self.deep, d.deep_grey);
        v = over(v, self.fluid, d.ventricle);

        let ventricle = share(d.ventricle);
        let brain = share(d.brain);
        let in_cerebrum = share(d.cerebrum);
        let deep = share(d.deep_grey);
        let white = in_cerebrum * share(deep_white)
            + (1.0 - in_cerebrum) * share(d.cerebellar_white).max(share(d.stem));
        let sulci = in_cerebrum * (1.0 - share(d.cortex));
        let rest = brain * (1.0 - ventricle);
        let white = white.min(brain) * (1.0 - ventricle) * (1.0 - deep);
        let sulci = sulci.min(brain) * (1.0 - ventricle) * (1.0 - deep);
        t.ventricles_ml += voxel_ml * f64::from(ventricle * brain);
        t.white_ml += voxel_ml * f64::from(white);
        t.sulci_ml += voxel_ml * f64::from(sulci);
        t.grey_ml += voxel_ml * f64::from((rest - white - sulci).max(0.0));
        v
    }
}
