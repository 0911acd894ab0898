//! One synthetic person: what differs between people and with age, and how deep a point lies in each structure.
//!
//! Shapes are drawn once, for a template brain centred on the origin (millimetres, RAS); a person stretches,
//! warps and tilts that template. Depths are signed distances, positive inside, good to a few per cent near the
//! surface, which is where they are used.
use super::field::Field;
use crate::machine::philox::{Philox, Purpose};

type Point = [f32; 3];

/// Half-axes of the cerebrum without its temporal lobes, in millimetres of the template.
pub(super) const CEREBRUM: Point = [67.0, 86.0, 50.0];
/// Thickness of the skull and of the skin and fat above it, in millimetres.
pub(super) const SKULL: f32 = 6.5;
pub(super) const SCALP: f32 = 6.0;

/// A lateral ventricle on the right: (from, radius there, to, radius there), in millimetres.
const VENTRICLE: [(Point, f32, Point, f32); 5] = [
    ([7.0, 38.0, 0.0], 2.5, [8.0, 22.0, 10.0], 5.0),
    ([8.0, 22.0, 10.0], 5.0, [11.0, -12.0, 17.0], 4.5),
    ([11.0, -12.0, 17.0], 4.5, [24.0, -34.0, 6.0], 6.5),
    ([24.0, -34.0, 6.0], 6.5, [25.0, -58.0, 2.0], 2.0),
    ([24.0, -34.0, 6.0], 5.0, [32.0, 0.0, -20.0], 2.0),
];
/// Thalamus, caudate head and putamen on the right: (centre, half-axes), in millimetres.
const DEEP_GREY: [(Point, Point); 3] = [
    ([11.0, -10.0, 2.0], [8.0, 14.0, 8.5]),
    ([15.0, 24.0, 6.0], [4.5, 12.0, 8.0]),
    ([26.0, 12.0, -2.0], [6.0, 16.0, 9.5]),
];

/// What differs between people.
#[derive(Clone, Debug)]
pub(super) struct Anatomy {
    /// How much the traits of people, tissues and coils vary, as a multiple of the usual.
    pub variation: f32,
    /// Stretch of the template along x, y, z.
    pub size: Point,
    /// Fluid between brain and skull, in millimetres.
    pub gap: f32,
    /// Thickness of the cortex, in millimetres.
    pub cortex: f32,
    /// Half the width of a sulcus, and how deep sulci reach, in millimetres.
    sulcus: [f32; 2],
    /// Ventricle radii as a multiple of the template's.
    ventricle: f32,
    /// Rows turn head coordinates into the template's, before the stretch.
    tilt: [Point; 3],
    folds: Field,
    folia: Field,
    warp: Field,
}

/// Depths of one point in each structure, in millimetres, positive inside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Depths {
    /// Below the outer surface of cerebrum, cerebellum and brain stem together.
    pub brain: f32,
    /// Below the outer surface of the cerebrum.
    pub cerebrum: f32,
    /// Distance of a point of the cerebrum from the nearest fluid outside it: hull or sulcus.
    pub cortex: f32,
    pub cerebellum: f32,
    /// Below the surface of the cerebellum's white matter.
    pub cerebellar_white: f32,
    pub stem: f32,
    pub deep_grey: f32,
    pub ventricle: f32,
    /// In the soft tissue of face and neck.
    pub face: f32,
    pub eye: f32,
}

impl Anatomy {
    /// Person number `subject` of the cohort `seed`.
    ///
    /// Brains age at different rates: all ageing follows `age` plus a normal deviate of 4 years. Around it each
    /// trait varies on its own, most of them by more than decades of ageing move them. The mean rates follow the
    /// order of what volumetry reports: ventricles × 3.7, cortex - 0.7 mm, sulci + 1.9 mm from 20 to 80 years.
    /// All deviates are multiplied by `variation`.
    pub(super) fn new(seed: u64, subject: u32, (age, male): (f32, bool), variation: f32) -> Anatomy {
        let mut r = Philox::new(seed, Purpose::Phantom, 1, subject);
        let deviate = |r: &mut Philox| variation * r.normal();
        let years = age + 4.0 * deviate(&mut r) - 50.0;
        let whole = (0.97 + 0.035 * deviate(&mut r)) * if male { 1.02 } else { 0.975 };
        let size = [0; 3].map(|_| (whole * (1.0 + 0.025 * deviate(&mut r))).clamp(0.85, 1.13));
        let ventricle = (0.5 * (0.022 * years + 0.25 * deviate(&mut r))).exp();
        let wavelength = r.between(0.9, 1.12);
        Anatomy {
            variation,
            size,
            gap: (2.4 + 0.025 * years + 0.6 * deviate(&mut r)).max(1.0),
            cortex: (3.0 - 0.012 * years + 0.12 * deviate(&mut r)).max(1.6),
            sulcus: [
                (0.75 + 0.016 * years + 0.13 * deviate(&mut r)).max(0.2),
                (19.0 + 1.5 * deviate(&mut r)).clamp(14.0, 23.0),
            ],
            ventricle,
            tilt: rotation([0; 3].map(|_| (3.0 * deviate(&mut r)).clamp(-7.0, 7.0).to_radians())),
            folds: Field::new(&mut r, 28, [19.0, 28.0].map(|w| w * wavelength)),
            folia: Field::new(&mut r, 12, [9.0, 14.0]),
            warp: Field::new(&mut r, 12, [55.0, 110.0]),
        }
    }

    /// The matrix that turns head millimetres into template millimetres.
    pub(super) fn to_template(&self) -> [Point; 3] {
        [0, 1, 2].map(|row| self.tilt[row].map(|v| v / self.size[row]))
    }

    /// Depths at `p` of the template. Fields are evaluated only where they matter, so far points are cheap.
    pub(super) fn depths(&self, p: Point) -> Depths {
        let mirrored = [p[0].abs(), p[1], p[2]];
        let mut cerebrum = smooth_max(
            ellipsoid(p, [0.0, 0.0, 12.0], CEREBRUM),
            ellipsoid(mirrored, [42.0, 12.0, -30.0], [22.0, 38.0, 20.0]),
            8.0,
        );
        let warp = if cerebrum.abs() < 35.0 { self.warp.at(p).0 } else { 0.0 };
        cerebrum += 1.6 * warp;
        let mut cerebellum = ellipsoid(p, [0.0, -50.0, -45.0], [51.0, 30.0, 24.0]) + 1.5 * warp;
        // The two halves of the cerebellum leave a notch behind.
        cerebellum -= 4.0 * (1.0 - p[0].abs() / 10.0).max(0.0) * if p[1] < -60.0 { 1.0 } else { 0.0 };
        let stem = round_cone(p, [0.0, -8.0, -24.0], 15.0, [0.0, -28.0, -76.0], 9.0);
        let brain = cerebrum.max(cerebellum).max(stem);
        let inside = brain > -2.0;

        let cortex = if cerebrum > -2.0 { self.distance_from_fluid(p, cerebrum, warp) } else { -1.0 };
        let cerebellar_white = if cerebellum > 2.0 {
            (cerebellum - 9.0 - 4.5 * self.folia.at(p).0).min(30.0 - p[0].abs() + 8.0 * warp)
        } else {
            -9.0
        };
        Depths {
            brain,
            cerebrum,
            cortex,
            cerebellum,
            cerebellar_white,
            stem,
            deep_grey: if inside { self.deep_grey(mirrored) } else { -9.0 },
            ventricle: if inside { self.ventricle(mirrored, warp) } else { -9.0 },
            face: ellipsoid(p, [0.0, 48.0, -55.0], [60.0, 52.0, 60.0]).max(round_cone(
                p,
                [0.0, -25.0, -60.0],
                52.0,
                [0.0, -35.0, -130.0],
                52.0,
            )),
            eye: ellipsoid(mirrored, [31.0, 84.0, -34.0], [12.0; 3]),
        }
    }

    /// Distance from hull, sulci and fissures. Sulci are the zero surfaces of a random field stretched along the
    /// radius, so that they stand on the hull; |f| / |∇f| is the distance from them to first order.
    fn distance_from_fluid(&self, p: Point, depth: f32, warp: f32) -> f32 {
        let [half_width, reach] = self.sulcus;
        let reach = reach * (1.0 + 0.25 * warp.clamp(-1.5, 1.5));
        let mut distance = depth;
        if depth < reach + 10.0 {
            const MIDDLE: f32 = 60.0;
            const RADIAL: f32 = 0.4;
            let radius = p.iter().map(|x| x * x).sum::<f32>().sqrt().max(1.0);
            let along = (radius / MIDDLE).powf(RADIAL - 1.0);
            let (f, g) = self.folds.at(p.map(|x| x * along));
            let radial = (0..3).map(|i| g[i] * p[i]).sum::<f32>() / radius;
            let squared = g.iter().map(|x| x * x).sum::<f32>() - (1.0 - RADIAL * RADIAL) * radial * radial;
            // Where the field is flat the quotient has no meaning; the bound is a third of its usual slope.
            let sulcus = f.abs() / (squared.max(0.0).sqrt() * along).max(0.07);
            distance = distance.min(sulcus.hypot((depth - reach).max(0.0)) - half_width);
        }
        // Between the hemispheres, down to the corpus callosum; and above the temporal lobe, into the insula.
        let callosum = ellipsoid(p, [0.0, 0.0, -2.0], [30.0, 46.0, 27.0]).max(0.0);
        let between = (p[0] - 1.2 * warp).abs().hypot(callosum) - half_width - 0.3;
        let slope = p[2] + 8.0 - 0.5 * (15.0 - p[1]) - 2.0 * warp;
        let beyond = (38.0 - p[0].abs()).max(0.0).hypot(((p[1] - 5.0).abs() - 32.0).max(0.0));
        let sylvian = slope.abs().hypot(beyond) - 1.6 * half_width - 0.4;
        distance.min(between).min(sylvian)
    }

    fn deep_grey(&self, mirrored: Point) -> f32 {
        DEEP_GREY.iter().map(|(centre, axes)| ellipsoid(mirrored, *centre, *axes)).fold(-9.0, f32::max)
    }

    fn ventricle(&self, mirrored: Point, warp: f32) -> f32 {
        let grown = self.ventricle * (1.0 + 0.06 * warp);
        let lateral = VENTRICLE
            .iter()
            .map(|&(a, ra, b, rb)| round_cone(mirrored, a, ra * grown, b, rb * grown))
            .fold(-9.0, f32::max);
        let third = ellipsoid(mirrored, [0.0, -4.0, -4.0], [1.9 * grown, 15.0, 10.0]);
        let fourth = ellipsoid(mirrored, [0.0, -36.0, -40.0], [6.0, 4.0 * grown, 8.0]);
        lateral.max(third).max(fourth)
    }
}

/// Rotation by `angles` (radians) about x, then y, then z.
pub(super) fn rotation(angles: Point) -> [Point; 3] {
    let ((sx, cx), (sy, cy), (sz, cz)) = (angles[0].sin_cos(), angles[1].sin_cos(), angles[2].sin_cos());
    [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
}

/// Depth in an ellipsoid, by the usual first-order bound k₀ (1 - k₀) / k₁ with k₀ = |p / a|, k₁ = |p / a²|.
fn ellipsoid(p: Point, centre: Point, axes: Point) -> f32 {
    let (mut k0, mut k1) = (0.0f32, 1e-12f32);
    for axis in 0..3 {
        let scaled = (p[axis] - centre[axis]) / axes[axis];
        k0 += scaled * scaled;
        k1 += (scaled / axes[axis]).powi(2);
    }
    let k0 = k0.sqrt();
    k0 * (1.0 - k0) / k1.sqrt()
}

/// Depth in a rod from `a` to `b` whose radius goes from `ra` to `rb`.
fn round_cone(p: Point, a: Point, ra: f32, b: Point, rb: f32) -> f32 {
    let (mut dot, mut length) = (0.0, 0.0);
    for axis in 0..3 {
        dot += (p[axis] - a[axis]) * (b[axis] - a[axis]);
        length += (b[axis] - a[axis]).powi(2);
    }
    let t = (dot / length).clamp(0.0, 1.0);
    let away = (0..3).map(|i| (p[i] - a[i] - t * (b[i] - a[i])).powi(2)).sum::<f32>().sqrt();
    ra + t * (rb - ra) - away
}

/// The larger of two depths with the crease filled over `width` millimetres.
fn smooth_max(a: f32, b: f32, width: f32) -> f32 {
    let overlap = (1.0 - (a - b).abs() / width).max(0.0);
    a.max(b) + 0.25 * width * overlap * overlap
}
