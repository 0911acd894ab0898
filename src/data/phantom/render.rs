//! From a synthetic person to images of T1, T2 and glucose uptake: tissue shares, contrast, bias field and noise.
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

/// Signal of each tissue; of T1 relative to white matter, as an MPRAGE at 3 T shows it.
#[derive(Clone, Copy)]
struct Contrast {
    white: f32,
    grey: f32,
    deep: f32,
    cerebellum: f32,
    cerebellar_white: f32,
    stem: f32,
    fluid: f32,
    muscle: f32,
    fat: f32,
    bone: f32,
    marrow: f32,
}

/// What the scanner makes of a signal.
struct Receiver {
    gain: f32,
    noise: f32,
    /// Coils shade the image: a quadratic in units of 100 mm.
    shade: [f32; 6],
}

impl Receiver {
    /// One of an MRI scanner, with a gain of about `usual`.
    fn draw(usual: f32, variation: f32, r: &mut Philox) -> Receiver {
        let (gain, noise) = (usual * (0.35 * r.normal()).exp(), r.between(0.015, 0.04));
        Receiver { gain, noise, shade: [0; 6].map(|_| 0.10 * variation * r.normal()) }
    }
}

/// Volumes of one person: the image in scanner units (white matter near 600), the brain mask (0 or 1), and the
/// tissue volumes. The same (`seed`, `subject`) gives the same head on every grid.
pub(super) fn render(anatomy: &Anatomy, grid: &Grid, seed: u64, subject: u32) -> (Volume, Volume, Tissues) {
    let mut r = Philox::new(seed, Purpose::Phantom, 2, subject);
    let grey = 0.70 + 0.03 * anatomy.variation * r.normal();
    let contrast = Contrast {
        white: 1.0,
        grey,
        deep: 0.80 + 0.02 * anatomy.variation * r.normal(),
        cerebellum: grey,
        cerebellar_white: 0.97,
        stem: 0.92,
        fluid: 0.24 + 0.03 * anatomy.variation * r.normal(),
        muscle: 0.52,
        fat: 1.15 + 0.08 * anatomy.variation * r.normal(),
        bone: 0.07,
        marrow: 0.40,
    };
    let receiver = Receiver::draw(600.0, anatomy.variation, &mut r);
    paint(anatomy, grid, &mut r, &receiver, |_| contrast)
}

/// The same person's T2-weighted image: fluid bright, white matter dark.
pub(super) fn render_t2w(anatomy: &Anatomy, grid: &Grid, seed: u64, subject: u32) -> Volume {
    let mut r = Philox::new(seed, Purpose::Phantom, 3, subject);
    let grey = 0.60 + 0.02 * anatomy.variation * r.normal();
    let contrast = Contrast {
        white: 0.42,
        grey,
        deep: 0.50 + 0.02 * anatomy.variation * r.normal(),
        cerebellum: grey,
        cerebellar_white: 0.44,
        stem: 0.46,
        fluid: 1.10 + 0.05 * anatomy.variation * r.normal(),
        muscle: 0.25,
        fat: 0.75 + 0.08 * anatomy.variation * r.normal(),
        bone: 0.05,
        marrow: 0.35,
    };
    let receiver = Receiver::draw(900.0, anatomy.variation, &mut r);
    paint(anatomy, grid, &mut r, &receiver, |_| contrast).0
}

/// The same person's uptake of glucose (FDG), in Bq/ml, as a scanner of 6 to 8 mm resolution shows it.
///
/// The dose differs from person to person. The cortex takes up less with the years, by 0.6 % of its value at 20 a year
/// in front and 0.4 % at the back and top, the rest of the brain as ever; people stray by 1.5 years from that and each
/// region by 1 %. So a pattern of uptake tells the age better than any volume of the [`Anatomy`] does.
pub(super) fn render_pet(anatomy: &Anatomy, grid: &Grid, seed: u64, subject: u32, age: f32) -> Volume {
    let mut r = Philox::new(seed, Purpose::Phantom, 4, subject);
    let years = age + 1.5 * r.normal() - 20.0;
    let [front, back, other, deep, cerebellum] =
        [0.006, 0.004, 0.0, 0.0, 0.0].map(|rate| (1.0 - rate * years) * (1.0 + 0.01 * r.normal()));
    let contrast = Contrast {
        white: 0.35,
        grey: other,
        deep: 1.1 * deep,
        cerebellum: 0.85 * cerebellum,
        cerebellar_white: 0.35,
        stem: 0.55,
        fluid: 0.05,
        muscle: 0.22,
        fat: 0.10,
        bone: 0.08,
        marrow: 0.15,
    };
    let receiver = Receiver { gain: 9000.0 * (0.3 * r.normal()).exp(), noise: 0.08, shade: [0.0; 6] };
    let fwhm = r.between(6.0, 8.0);
    let regional = |p: [f32; 3]| {
        let share = |depth: f32| (0.5 + depth / 20.0).clamp(0.0, 1.0);
        let (in_front, behind) = (share(p[1] - 25.0), share(-25.0 - p[1]).min(share(p[2] - 15.0)));
        Contrast { grey: other + (front - other) * in_front + (back - other) * behind, ..contrast }
    };
    let mut volume = paint(anatomy, grid, &mut r, &receiver, regional).0;
    blur(&mut volume, fwhm);
    volume
}

/// One image of the head with its brain mask and tissue volumes; `contrast` is that at a place of the template.
fn paint(
    anatomy: &Anatomy,
    grid: &Grid,
    r: &mut Philox,
    &Receiver { gain, noise, shade }: &Receiver,
    contrast: impl Fn([f32; 3]) -> Contrast,
) -> (Volume, Volume, Tissues) {
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
        let signal = contrast(p).signal(anatomy, &depths, blur, voxel_ml, &mut tissues);
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

/// Smooths along each axis by a Gaussian of `fwhm` millimetres at half height; beyond the image its edge goes on.
fn blur(volume: &mut Volume, fwhm: f32) {
    let steps = [1, volume.shape[0], volume.shape[0] * volume.shape[1]];
    for (r, mm) in volume.spacing().into_iter().enumerate() {
        let sigma = f64::from(fwhm) / 2.354_820 / mm;
        let reach = (3.0 * sigma).ceil() as isize;
        let weights: Vec<f64> = (-reach..=reach).map(|d| (-0.5 * (d as f64 / sigma).powi(2)).exp()).collect();
        let total: f64 = weights.iter().sum();
        let (n, step) = (volume.shape[r], steps[r]);
        let before = volume.data.clone();
        for (i, to) in volume.data.iter_mut().enumerate() {
            let here = i / step % n;
            let line = |d: isize| before[i - here * step + here.saturating_add_signed(d).min(n - 1) * step];
            let sum = (-reach..=reach).zip(&weights).map(|(d, w)| w * f64::from(line(d))).sum::<f64>();
            *to = (sum / total) as f32;
        }
    }
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
        v = over(v, self.bone, SKULL - outer);
        v = over(v, self.marrow, 1.2 - (outer - SKULL / 2.0).abs());
        v = over(v, self.fluid, -outer);
        if d.brain < -blur {
            return v;
        }
        v = over(v, self.stem, d.stem);
        v = over(v, self.cerebellum, d.cerebellum);
        v = over(v, self.cerebellar_white, d.cerebellar_white);
        let deep_white = d.cortex - anatomy.cortex;
        let mut cerebrum = over(self.fluid, self.grey, d.cortex);
        cerebrum = over(cerebrum, self.white, deep_white);
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
