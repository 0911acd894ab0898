//! Random changes of a prepared volume while training: left-right flip, small affine maps, and intensity.
//!
//! Prepared volumes are z-scored inside the brain and hold [`BACKGROUND`] outside. Interpolation counts only
//! brain voxels: a voxel is brain where at least half of the interpolation weight is, and its value is the mean of
//! those by weight, so that edges carry neither the dark halo of a background mixed in nor a bright one.
//! Intensity changes touch the brain only, and never push a voxel down to the background.
mod resample;

use super::{Error, noise::quick_normal};
use crate::{image::BACKGROUND, machine::philox::Philox};
use half::{f16, slice::HalfFloatSliceExt};
use resample::{Padded, Placement, resample};
use serde::{Deserialize, Serialize};

/// How strongly volumes are changed; each range is drawn from anew, evenly, for every volume. 0 turns one off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Probability of exchanging left and right.
    pub flip: f32,
    /// Rotation about each axis, up to ± degrees.
    pub rotate_deg: f32,
    /// Size, up to ± this share.
    pub scale: f32,
    /// Size along each axis on its own, up to ± this share.
    pub stretch: f32,
    /// Shift along each axis, up to ± millimetres.
    pub translate_mm: f32,
    /// Natural logarithm of the exponent that bends the grey scale, up to ±.
    pub gamma: f32,
    /// Factor on the intensities, 1 ± up to this.
    pub contrast: f32,
    /// Addition to the intensities, up to ± standard deviations of the brain.
    pub brightness: f32,
    /// Smooth shading by a polynomial of second order: about twice its standard deviation at a corner of the grid, as
    /// a share of the signal.
    pub bias: f32,
    /// Standard deviation of white noise, up to this many standard deviations of the brain.
    pub noise: f32,
}

impl Default for Augment {
    fn default() -> Self {
        Augment {
            flip: 0.5,
            rotate_deg: 8.0,
            scale: 0.05,
            stretch: 0.03,
            translate_mm: 4.0,
            gamma: 0.2,
            contrast: 0.1,
            brightness: 0.1,
            bias: 0.15,
            noise: 0.1,
        }
    }
}

impl Augment {
    /// No change at all.
    pub fn none() -> Augment {
        Augment {
            flip: 0.0,
            rotate_deg: 0.0,
            scale: 0.0,
            stretch: 0.0,
            translate_mm: 0.0,
            gamma: 0.0,
            contrast: 0.0,
            brightness: 0.0,
            bias: 0.0,
            noise: 0.0,
        }
    }

    /// Refuses settings that make no sense, by name.
    ///
    /// # Errors
    /// A value that is negative, not finite, or beyond what leaves a volume recognisable.
    pub fn check(&self) -> Result<(), Error> {
        let settings = [
            ("flip", self.flip, 1.0),
            ("rotate_deg", self.rotate_deg, 180.0),
            ("scale", self.scale, 0.5),
            ("stretch", self.stretch, 0.5),
            ("translate_mm", self.translate_mm, 100.0),
            ("gamma", self.gamma, 2.0),
            ("contrast", self.contrast, 1.0),
            ("brightness", self.brightness, 4.0),
            ("bias", self.bias, 1.0),
            ("noise", self.noise, 4.0),
        ];
        match settings.into_iter().find(|(_, value, most)| !(0.0..=*most).contains(value)) {
            Some((key, value, most)) => Err(Error::Setting { key, value, most }),
            None => Ok(()),
        }
    }
}

/// Brain values stay above the background by this much, which `f16` and `bf16` still tell apart.
const FLOOR: f32 = BACKGROUND + 0.0625;
/// The grey scale that `gamma` bends: from the background to as far above 0.
const SPAN: f32 = -2.0 * BACKGROUND;

/// Writes a random variant of `volume` (`[x][y][z]`, z fastest, voxels of `spacing` mm) to `out`. With
/// [`Augment::none`] it is `volume` itself. Draws depend on `r` alone.
pub fn augment(
    volume: &[f16],
    grid: [usize; 3],
    spacing: f32,
    how: &Augment,
    r: &mut Philox,
    out: &mut [f32],
) {
    let count = grid.iter().product::<usize>();
    assert!(
        volume.len() == count && out.len() == count,
        "{} and {} voxels, grid {grid:?}",
        volume.len(),
        out.len()
    );
    let mirror = r.uniform() < how.flip;
    match Placement::draw(grid, spacing, how, mirror, r) {
        Some(placement) => resample(&Padded::new(volume, grid), grid, &placement, out),
        None => {
            let slab = grid[1] * grid[2];
            for x in 0..grid[0] {
                let from = if mirror { grid[0] - 1 - x } else { x };
                volume[from * slab..][..slab].convert_to_f32_slice(&mut out[x * slab..][..slab]);
            }
        }
    }
    if [how.gamma, how.contrast, how.brightness, how.bias, how.noise] != [0.0; 5] {
        shade(grid, how, r, out);
    }
}

/// Changes intensities inside the brain: gamma, then shading, then contrast, brightness and noise.
fn shade(grid: [usize; 3], how: &Augment, r: &mut Philox, out: &mut [f32]) {
    let exponent = r.between(-how.gamma, how.gamma).exp();
    let contrast = 1.0 + r.between(-how.contrast, how.contrast);
    let brightness = r.between(-how.brightness, how.brightness);
    let noise = r.uniform() * how.noise;
    // Of x, y, z, x², y², z², xy, xz, yz from -1 to 1. At a corner their sum has a standard deviation of 0.58 `bias`.
    let c: [f32; 9] = [0; 9].map(|_| r.between(-how.bias, how.bias) / 3.0);
    const STEPS: usize = 256;
    let curve: Vec<f32> = (0..=STEPS + 1).map(|i| SPAN * (i as f32 / STEPS as f32).powf(exponent)).collect();
    let unit = |i: usize, n: usize| 2.0 * (i as f32 + 0.5) / n as f32 - 1.0;
    for (row, line) in out.chunks_exact_mut(grid[2]).enumerate() {
        let (x, y) = (unit(row / grid[1], grid[0]), unit(row % grid[1], grid[1]));
        let b0 = 1.0 + c[0] * x + c[1] * y + c[3] * x * x + c[4] * y * y + c[6] * x * y;
        let b1 = c[2] + c[7] * x + c[8] * y;
        for (k, value) in line.iter_mut().enumerate() {
            // A voxel that is no number stays so: the loss then names its scan.
            if *value == BACKGROUND || value.is_nan() {
                continue;
            }
            let z = unit(k, grid[2]);
            let at = ((*value - BACKGROUND) * (STEPS as f32 / SPAN)).min(STEPS as f32);
            let cell = at as i32;
            let f = at - cell as f32;
            let cell = cell as usize;
            let bent = curve[cell] + (curve[cell + 1] - curve[cell]) * f;
            let shaded = BACKGROUND + bent * (b0 + z * (b1 + z * c[5]));
            let noisy = if noise > 0.0 { noise * quick_normal(r) } else { 0.0 };
            *value = (shaded * contrast + brightness + noisy).clamp(FLOOR, -BACKGROUND);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::philox::Purpose;

    const GRID: [usize; 3] = [20, 24, 18];

    /// A ball of brain whose value rises along x, in background.
    fn ball(grid: [usize; 3]) -> Vec<f16> {
        let mut data = Vec::new();
        for x in 0..grid[0] {
            for y in 0..grid[1] {
                for z in 0..grid[2] {
                    let q = |i: usize, n: usize| (i as f32 + 0.5) / n as f32 - 0.5;
                    let radius =
                        (q(x, grid[0]).powi(2) + q(y, grid[1]).powi(2) + q(z, grid[2]).powi(2)).sqrt();
                    let value = if radius < 0.4 { 4.0 * q(x, grid[0]) } else { BACKGROUND };
                    data.push(f16::from_f32(value));
                }
            }
        }
        data
    }

    fn run(how: &Augment, seed: u64) -> Vec<f32> {
        let mut out = vec![f32::NAN; GRID.iter().product()];
        augment(&ball(GRID), GRID, 2.0, how, &mut Philox::new(seed, Purpose::Test, 0, 0), &mut out);
        out
    }

    #[test]
    fn no_change_is_no_change_to_the_bit() {
        let expected: Vec<f32> = ball(GRID).iter().map(|v| v.to_f32()).collect();
        assert_eq!(run(&Augment::none(), 1), expected);
    }

    #[test]
    fn a_flip_exchanges_left_and_right_and_nothing_else() {
        let flipped = run(&Augment { flip: 1.0, ..Augment::none() }, 1);
        let slab = GRID[1] * GRID[2];
        let back: Vec<f32> = flipped.chunks_exact(slab).rev().flatten().copied().collect();
        assert_eq!(back, run(&Augment::none(), 1));
        // The resampling path agrees: a flip with a rotation too small to matter.
        let turned = run(&Augment { flip: 1.0, rotate_deg: 1e-5, ..Augment::none() }, 1);
        let off = turned.iter().zip(&flipped).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-3, "{off}");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        assert!(Augment::default().check().is_ok() && Augment::none().check().is_ok());
        let error = Augment { scale: -0.1, ..Augment::default() }.check().unwrap_err().to_string();
        assert_eq!(error, "augment.scale is -0.1, but must be from 0 to 0.5");
        assert!(Augment { noise: f32::NAN, ..Augment::default() }.check().is_err());
    }

    #[test]
    fn whole_voxel_shifts_move_voxels() {
        let mut out = vec![0.0; GRID.iter().product()];
        let matrix = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        let placement = Placement { matrix, origin: [2.0, -3.0, 1.0] };
        let volume = ball(GRID);
        resample(&Padded::new(&volume, GRID), GRID, &placement, &mut out);
        let at = |x: usize, y: usize, z: usize| (x * GRID[1] + y) * GRID[2] + z;
        assert_eq!(out[at(8, 13, 7)], volume[at(10, 10, 8)].to_f32());
        assert_eq!(out[at(19, 12, 9)], BACKGROUND);
    }

    #[test]
    fn edges_carry_no_halo_and_the_brain_keeps_its_size() {
        for seed in 0..20 {
            let how = Augment { rotate_deg: 10.0, scale: 0.05, translate_mm: 3.0, ..Augment::none() };
            let values = run(&how, seed);
            let brain: Vec<f32> = values.into_iter().filter(|&v| v > BACKGROUND).collect();
            // The ball holds values between -1.6 and 1.6: anything else would be a mix with the background.
            assert!(brain.iter().all(|v| v.abs() <= 1.6));
            let before = ball(GRID).iter().filter(|v| v.to_f32() > BACKGROUND).count();
            let growth = brain.len() as f32 / before as f32;
            assert!((0.83..1.18).contains(&growth), "growth {growth}");
        }
    }

    #[test]
    fn intensity_changes_leave_the_background_and_are_reproducible() {
        let how = Augment {
            rotate_deg: 0.0,
            scale: 0.0,
            stretch: 0.0,
            translate_mm: 0.0,
            flip: 0.0,
            ..Augment::default()
        };
        let (a, b) = (run(&how, 3), run(&how, 3));
        assert_eq!(a, b);
        let original = run(&Augment::none(), 3);
        assert!(a.iter().zip(&original).all(|(a, o)| (*a > BACKGROUND) == (*o > BACKGROUND)));
        assert_ne!(a, original);
        assert_ne!(a, run(&how, 4));
    }
}
