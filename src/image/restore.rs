//! From a prepared volume back to something like the scan it came from, and forth again, for what has to act on
//! intensities: z-scores have no zero, and corruption comes before normalisation.
//!
//! Both percentiles at which the brain was clipped are known in the file's units, so its intensities are too, but for
//! those beyond them. What preparation leaves out does not come back: voxels are the grid's, not the scan's, and around
//! the brain there is nothing.
use super::{
    BACKGROUND, Error, Prepared, Preprocessing, Stats, Volume, intensity::Normalisation, orientation,
    resample::noise_left,
};
use std::ops::Range;

/// A prepared volume as a scan.
#[derive(Clone, Debug)]
pub struct Restored<'a> {
    /// Seen as RAS, x fastest: 0 around the brain, in a field of view as large as the scan's, of which the grid is the
    /// middle.
    pub volume: Volume,
    /// Millimetres between the scan's own voxels, along x, y and z.
    pub scan_spacing: [f64; 3],
    /// The share of white noise's standard deviation that resampling the scan to the grid leaves.
    pub noise_left: f64,
    settings: &'a Preprocessing,
    stats: &'a Stats,
    step: [f64; 3],
    /// Where the grid begins in the volume.
    corner: [usize; 3],
    /// The brain, `[x][y][z]`.
    inside: Vec<bool>,
    /// What the file has where the volume is 0.
    zero: f64,
}

/// A field of view is no larger than this many grids, along each axis.
const LARGEST: usize = 2;

impl<'a> Restored<'a> {
    /// The scan behind `data`, z-scores `[x][y][z]` as [`super::preprocess`] leaves them, with what it found.
    ///
    /// # Errors
    /// Settings out of range; voxels, or percentiles, that are all the same.
    pub fn new(data: &[f32], settings: &'a Preprocessing, stats: &'a Stats) -> Result<Restored<'a>, Error> {
        settings.check()?;
        let inside: Vec<bool> = data.iter().map(|&v| v > BACKGROUND).collect();
        let brain = || data.iter().zip(&inside).filter(|(_, i)| **i).map(|(v, _)| *v);
        let [least, most] = [brain().fold(f32::MAX, f32::min), brain().fold(f32::MIN, f32::max)];
        let [low, high] = stats.percentiles;
        // Both are tests that NaN fails.
        if !(least < most && low < high) {
            return Err(Error::Constant(low));
        }
        // The least and the greatest z-score are the percentiles'. (Where more than 4 SD off they were cut, and the SD
        // comes out a little too large.)
        let [low, high, least, most] = [low, high, least, most].map(f64::from);
        let sd = (high - low) / (most - least);
        let mean = low - sd * least;
        // A file of negative values was normalised before: its air is taken to lie where the cache has it.
        let zero = if low < 0.0 { mean + sd * f64::from(BACKGROUND) } else { 0.0 };

        let step = settings.steps(stats.box_mm);
        let axes = orientation::axes(&stats.orientation);
        let scan_spacing = axes.map(|a| stats.spacing[a]);
        let grid = settings.grid;
        let shape = [0, 1, 2].map(|r| {
            let field = stats.shape[axes[r]] as f64 * scan_spacing[r] / step[r];
            (field.round() as usize).clamp(grid[r], LARGEST * grid[r])
        });
        let corner = [0, 1, 2].map(|r| (shape[r] - grid[r]) / 2);
        let mut affine = super::IDENTITY;
        (0..3).for_each(|r| affine[r][r] = step[r]);
        let mut volume = Volume { shape, affine, data: vec![0.0; shape.iter().product()] };
        for (i, (&z, _)) in data.iter().zip(&inside).enumerate().filter(|(_, (_, i))| **i) {
            let [x, y, z_axis] = place(grid, corner, i);
            // Brain is no background, however dark it is.
            let value = ((mean + sd * f64::from(z) - zero) as f32).max(f32::MIN_POSITIVE);
            volume.data[x + shape[0] * (y + shape[1] * z_axis)] = value;
        }
        let noise_left = (0..3).map(|r| noise_left(step[r] / scan_spacing[r])).product();
        Ok(Restored { volume, scan_spacing, noise_left, settings, stats, step, corner, inside, zero })
    }

    /// Prepares what became of the volume, of which `kept` are the planes that are left: within the brain that it was
    /// prepared with, which ends where the volume does.
    ///
    /// # Errors
    /// A brain that is all the same, or that is gone.
    pub fn prepare(&self, volume: &Volume, kept: &[Range<usize>; 3]) -> Result<Prepared, Error> {
        let grid = self.settings.grid;
        let value = |i: usize| {
            let at = place(grid, self.corner, i);
            let within = (0..3).all(|r| kept[r].contains(&at[r]));
            let [x, y, z] = [0, 1, 2].map(|r| at[r].wrapping_sub(kept[r].start));
            within.then(|| volume.data[x + volume.shape[0] * (y + volume.shape[1] * z)])
        };
        let brain = self.inside.iter().enumerate().filter(|(_, inside)| **inside).map(|(i, _)| i);
        let (at, values): (Vec<usize>, Vec<f32>) = brain.filter_map(|i| Some((i, value(i)?))).unzip();
        if values.is_empty() {
            return Err(Error::NoBrain("it was all cut off"));
        }
        let (normalisation, percentiles) = Normalisation::of(&values, self.settings.clip)?;
        let mut data = vec![BACKGROUND; self.inside.len()];
        at.iter().zip(&values).for_each(|(&i, &v)| data[i] = normalisation.apply(v));
        let left = values.len() as f64 / self.inside.iter().filter(|i| **i).count() as f64;
        let mut affine = self.volume.affine;
        (0..3).for_each(|r| affine[r][3] = self.step[r] * self.corner[r] as f64);
        Ok(Prepared {
            foreground: values.len() as f64 / data.len() as f64,
            data,
            grid,
            affine,
            spacing: self.step,
            stats: Stats {
                brain_ml: self.stats.brain_ml * left,
                percentiles: percentiles.map(|p| (f64::from(p) + self.zero) as f32),
                ..self.stats.clone()
            },
        })
    }
}

/// Where voxel `i` of a grid `[x][y][z]` lies in a volume in which the grid begins at `corner`.
fn place([_, ny, nz]: [usize; 3], corner: [usize; 3], i: usize) -> [usize; 3] {
    [i / (ny * nz) + corner[0], i / nz % ny + corner[1], i % nz + corner[2]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::preprocess;

    /// An ellipsoid of brain whose axes run to the back, the top and the right, with `value` inside and 0 outside.
    fn scan(value: impl Fn([usize; 3]) -> f32) -> Volume {
        let (shape, affine) = (
            [60, 50, 40],
            [[0.0, 0.0, 2.0, 0.0], [-1.5, 0.0, 0.0, 0.0], [0.0, 1.8, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]],
        );
        let data = (0..60 * 50 * 40).map(|i| {
            let at = [i % 60, i / 60 % 50, i / 3000];
            let from_centre =
                |r: usize| ((at[r] as f32 + 0.5 - shape[r] as f32 / 2.0) / (0.36 * shape[r] as f32)).powi(2);
            if (0..3).map(from_centre).sum::<f32>() < 1.0 { value(at) } else { 0.0 }
        });
        Volume { shape, affine, data: data.collect() }
    }

    fn wave(at: [usize; 3]) -> f32 {
        500.0 + 200.0 * (at[0] as f32 * 0.3).sin() + 3.0 * at[1] as f32 - 2.0 * at[2] as f32
    }

    #[test]
    fn a_scan_comes_back_in_its_own_units_and_is_prepared_as_before() {
        for (settings, offset) in [
            (Preprocessing { grid: [24, 28, 24], ..Preprocessing::default() }, 0.0),
            (Preprocessing { grid: [26, 30, 30], spacing: Some(3.0), ..Preprocessing::default() }, 0.0),
            (Preprocessing { grid: [24, 28, 24], ..Preprocessing::default() }, -700.0),
        ] {
            let image = scan(|at| wave(at) + offset);
            let prepared = preprocess(image, None, &settings).unwrap();
            let restored = Restored::new(&prepared.data, &settings, &prepared.stats).unwrap();
            assert_eq!(restored.scan_spacing, [2.0, 1.5, 1.8]);
            // The field of view is that of the scan.
            for r in 0..3 {
                let mm = restored.volume.shape[r] as f64 * restored.volume.spacing()[r];
                assert!((mm - [80.0, 90.0, 90.0][r]).abs() <= 3.1, "{mm} along {r}");
            }
            let [low, high] = prepared.stats.percentiles.map(f64::from);
            let brain: Vec<f64> =
                restored.volume.data.iter().filter(|v| **v > 0.0).map(|v| f64::from(*v)).collect();
            let [least, most] =
                [brain.iter().copied().fold(f64::MAX, f64::min), brain.iter().copied().fold(0.0, f64::max)];
            assert!((most - least - (high - low)).abs() < 0.01, "{least} {most} of {low} {high}");
            assert_eq!((least - low).abs() < 0.01, offset == 0.0, "only negative values are lifted");

            let whole = restored.volume.shape.map(|n| 0..n);
            let again = restored.prepare(&restored.volume, &whole).unwrap();
            assert_eq!((again.foreground, again.grid), (prepared.foreground, prepared.grid));
            assert_eq!(again.stats.brain_ml, prepared.stats.brain_ml);
            for (a, b) in again.data.iter().zip(&prepared.data) {
                assert!((a - b).abs() < 0.01 && (*a > BACKGROUND) == (*b > BACKGROUND), "{a} {b}");
            }
            let [p, q] = again.stats.percentiles;
            let near = |a: f32, b: f64| (f64::from(a) - b).abs() < 0.01 * (high - low);
            assert!(near(p, low) && near(q, high), "{p} {q} of {low} {high}");
        }
    }

    #[test]
    fn what_is_cut_off_is_no_brain_any_more() {
        let settings = Preprocessing { grid: [24, 28, 24], ..Preprocessing::default() };
        let prepared = preprocess(scan(wave), None, &settings).unwrap();
        let restored = Restored::new(&prepared.data, &settings, &prepared.stats).unwrap();
        let [nx, ny, nz] = restored.volume.shape;
        let kept = [0..nx / 2, 0..ny, 0..nz];
        let rows = restored.volume.data.chunks(nx).flat_map(|row| &row[..nx / 2]);
        let half =
            Volume { shape: [nx / 2, ny, nz], data: rows.copied().collect(), ..restored.volume.clone() };
        let cut = restored.prepare(&half, &kept).unwrap();
        assert!((cut.foreground / prepared.foreground - 0.5).abs() < 0.1, "{}", cut.foreground);
        assert!((cut.stats.brain_ml / prepared.stats.brain_ml - 0.5).abs() < 0.1);
        assert!(cut.data.iter().zip(&prepared.data).all(|(a, b)| *a == BACKGROUND || *b > BACKGROUND));
        assert!(matches!(restored.prepare(&half, &[0..0, 0..ny, 0..nz]), Err(Error::NoBrain(_))));
        assert!(matches!(
            Restored::new(&vec![BACKGROUND; 24 * 28 * 24], &settings, &prepared.stats),
            Err(Error::Constant(_))
        ));
    }
}
