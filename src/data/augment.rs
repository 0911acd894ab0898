//! Random changes of a prepared volume while training: left-right flip, small affine maps, and intensity. Here a
//! variant is drawn, a few numbers; the operation [`augment`](crate::ops::augment()) makes it.
use super::Error;
use crate::machine::philox::{Philox, Purpose, STREAM};
use crate::ops::augment::{Affine, IDENTITY, Shading, mirror};
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

    /// Draws the variant of a volume of `grid` voxels of `spacing` mm that training sees as sample `sample` of step
    /// `step`. Of [`Augment::none`] it is the volume itself.
    pub fn draw(&self, grid: [usize; 3], spacing: f32, seed: u64, step: u64, sample: u32) -> Variant {
        let mut r = Philox::new(seed, Purpose::Augment, step, sample);
        let mirrored = r.uniform() < self.flip;
        let affine = self.draw_affine(grid, spacing, mirrored, &mut r);
        let shading = self.draw_shading(&mut r);
        Variant { affine, shading, noise: Philox::new(seed, Purpose::Noise, step, sample).start() }
    }

    fn draw_affine(&self, grid: [usize; 3], spacing: f32, mirrored: bool, r: &mut Philox) -> Affine<f32> {
        let turns = [0; 3].map(|_| r.between(-self.rotate_deg, self.rotate_deg).to_radians());
        let size = 1.0 + r.between(-self.scale, self.scale);
        let sizes = [0; 3].map(|_| size * (1.0 + r.between(-self.stretch, self.stretch)));
        let shift = [0; 3].map(|_| r.between(-self.translate_mm, self.translate_mm) / spacing);
        if [self.rotate_deg, self.scale, self.stretch, self.translate_mm] == [0.0; 4] {
            return if mirrored { mirror(grid[0]) } else { IDENTITY };
        }
        let [(sx, cx), (sy, cy), (sz, cz)] = turns.map(f32::sin_cos);
        let mut matrix = [
            [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
            [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
            [-sy, cy * sx, cy * cx],
        ];
        for row in &mut matrix {
            for axis in 0..3 {
                row[axis] /= sizes[axis];
            }
            if mirrored {
                row[0] = -row[0];
            }
        }
        // The centre of the grid stays where it is, but for the shift.
        let centre = grid.map(|n| 0.5 * (n - 1) as f32);
        [0, 1, 2].map(|i| {
            let [a, b, c] = matrix[i];
            [a, b, c, centre[i] + shift[i] - (a * centre[0] + b * centre[1] + c * centre[2])]
        })
    }

    fn draw_shading(&self, r: &mut Philox) -> Shading<f32> {
        if [self.gamma, self.contrast, self.brightness, self.bias, self.noise] == [0.0; 5] {
            return Shading::NONE;
        }
        Shading {
            exponent: r.between(-self.gamma, self.gamma).exp(),
            contrast: 1.0 + r.between(-self.contrast, self.contrast),
            brightness: r.between(-self.brightness, self.brightness),
            noise: r.uniform() * self.noise,
            // At a corner the sum of nine such numbers has a standard deviation of 0.58 `bias`.
            bias: [0; 9].map(|_| r.between(-self.bias, self.bias) / 3.0),
        }
    }
}

/// A variant of a volume: a row of each input of [`augment`](crate::ops::augment()).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variant {
    /// Where its voxels lie in the volume.
    pub affine: Affine<f32>,
    /// What is done to their intensities.
    pub shading: Shading<f32>,
    /// Where the stream begins that its noise comes from.
    pub noise: [u32; STREAM],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::BACKGROUND;
    use crate::ops::augment;
    use crate::program::Cpu;
    use crate::tape::{Dtype, Tape};
    use half::f16;

    const GRID: [usize; 3] = [20, 24, 18];

    /// A ball of brain whose value rises along x, in background.
    fn ball() -> Vec<f16> {
        let mut data = Vec::new();
        for x in 0..GRID[0] {
            for y in 0..GRID[1] {
                for z in 0..GRID[2] {
                    let q = |i: usize, axis: usize| (i as f32 + 0.5) / GRID[axis] as f32 - 0.5;
                    let radius = (q(x, 0).powi(2) + q(y, 1).powi(2) + q(z, 2).powi(2)).sqrt();
                    let value = if radius < 0.4 { 4.0 * q(x, 0) } else { BACKGROUND };
                    data.push(f16::from_f32(value));
                }
            }
        }
        data
    }

    fn run(how: &Augment, seed: u64) -> Vec<f32> {
        let (mut t, [x, y, z]) = (Tape::default(), GRID);
        let stored = t.input_as(&[1, 1, x, y, z], Dtype::Stored);
        let (affine, shading, noise) = (t.input(&[1, 3, 4]), t.input(&[1, 13]), t.indices(&[1, STREAM]));
        let volume = augment(&mut t, stored, affine, shading, noise);
        let mut cpu = Cpu::<f32>::new(t, &[volume]);
        let variant = how.draw(GRID, 2.0, seed, 0, 0);
        cpu.stored(stored).copy_from_slice(&ball());
        cpu.write(affine, variant.affine.as_flattened());
        cpu.write(shading, &variant.shading.row());
        cpu.write_indices(noise, &variant.noise);
        cpu.run();
        cpu.read(volume).to_vec()
    }

    #[test]
    fn no_change_is_no_change_to_the_bit() {
        let expected: Vec<f32> = ball().iter().map(|v| v.to_f32()).collect();
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
    fn edges_carry_no_halo_and_the_brain_keeps_its_size() {
        for seed in 0..20 {
            let how = Augment { rotate_deg: 10.0, scale: 0.05, translate_mm: 3.0, ..Augment::none() };
            let values = run(&how, seed);
            let brain: Vec<f32> = values.into_iter().filter(|&v| v > BACKGROUND).collect();
            // The ball holds values between -1.6 and 1.6: anything else would be a mix with the background.
            assert!(brain.iter().all(|v| v.abs() <= 1.6));
            let before = ball().iter().filter(|v| v.to_f32() > BACKGROUND).count();
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
