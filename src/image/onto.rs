//! Another image of a head that is prepared already, on the same grid: resampled once, straight from its own voxels,
//! and only within that brain.
//!
//! Where the grid's voxels are larger than the image's, each is the mean of points spread evenly over it, so that
//! nothing is aliased; between voxels values are linear.
use super::{
    Affine, BACKGROUND, Error, Prepared, Preprocessing, Stats, Volume,
    affine::{apply, inverse, multiply},
    intensity::{GREATEST, LEAST, Normalisation, percentiles},
    orientation::{self, Axes},
    preprocess::refuse_not_finite,
    trilinear,
};

/// How an image's values become what the network sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// As a scan's own: clipped at two percentiles of the brain, then z-scored.
    ZScore,
    /// As PET: [`PET_SCALE`] · (value / mean of a region - 1), cut to the range above [`BACKGROUND`]; the same for all
    /// scans, so that a lower uptake stays a lower uptake.
    Region(f64),
    /// The same, with the mean over the whole brain for the region's: what differs between brains is the pattern then,
    /// not the level.
    Brain,
}

/// What one reference's worth of PET comes to: values from 0 to 3 times the reference fill -2 to 4.
pub const PET_SCALE: f64 = 2.0;

/// More of the brain than this beyond the image, or beyond the scale, is warned about.
const TOLERATED: f64 = 0.01;

/// Prepares `volume` on the grid and within the brain of `prepared`. `to_volume` takes millimetres of that scan to
/// millimetres of this image. Brain that the image does not show is [`BACKGROUND`]. Also returns what values were
/// divided by, under a scale that divides.
///
/// Errors: voxels that are not finite, no brain in the image, constant intensity, a mean that is not positive.
pub fn preprocess_onto(
    volume: &Volume,
    prepared: &Prepared,
    to_volume: &Affine,
    scale: Scale,
    settings: &Preprocessing,
) -> Result<(Prepared, Option<f64>), Error> {
    refuse_not_finite(volume)?;
    let to_voxel = multiply(&inverse(&volume.affine), &multiply(to_volume, &prepared.affine));
    let offsets = offsets(&to_voxel);
    let [_, ny, nz] = prepared.grid;
    let sample = |i: usize| {
        let voxel = [i / (ny * nz), i / nz % ny, i % nz].map(|v| v as f64);
        let (mut sum, mut count) = (0.0, 0_u16);
        for offset in &offsets {
            let at = apply(&to_voxel, [0, 1, 2].map(|r| voxel[r] + offset[r]));
            if let Some(value) = trilinear::value(volume, at) {
                sum += value;
                count += 1;
            }
        }
        (count > 0).then(|| sum / f32::from(count))
    };
    let brain = || prepared.data.iter().enumerate().filter(|(_, v)| **v > BACKGROUND).map(|(i, _)| i);
    let (at, values): (Vec<usize>, Vec<f32>) = brain().filter_map(|i| Some((i, sample(i)?))).unzip();
    if values.is_empty() {
        return Err(Error::NoBrain("it lies beside the T1w's brain"));
    }

    let mut warnings = Vec::new();
    let missing = 1.0 - values.len() as f64 / brain().count() as f64;
    if missing > TOLERATED {
        warnings.push(format!("{:.0} % of the brain lies outside the image", 100.0 * missing));
    }
    let mut data = vec![BACKGROUND; prepared.data.len()];
    let clip = percentiles(&values, settings.clip);
    let mut reference = None;
    match scale {
        Scale::ZScore => {
            let (normalisation, _) = Normalisation::of(&values, settings.clip)?;
            at.iter().zip(&values).for_each(|(&i, &v)| data[i] = normalisation.apply(v));
        }
        Scale::Region(_) | Scale::Brain => {
            let (mean, region) = match scale {
                Scale::Region(mean) => (mean, "the reference region"),
                _ => (values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64, "the brain"),
            };
            // Not `mean <= 0`: NaN, too, is no reference.
            if !(mean > 0.0 && mean.is_finite()) {
                return Err(Error::Reference { region, mean });
            }
            reference = Some(mean);
            let scaled = |v: f32| (PET_SCALE * (f64::from(v) / mean - 1.0)) as f32;
            let beyond = values.iter().filter(|v| scaled(**v) > GREATEST).count() as f64;
            if beyond > TOLERATED * values.len() as f64 {
                let most = 1.0 + f64::from(GREATEST) / PET_SCALE;
                let share = 100.0 * beyond / values.len() as f64;
                warnings.push(format!(
                    "{share:.0} % of the brain takes up more than {most} times the reference and is cut there"
                ));
            }
            at.iter().zip(&values).for_each(|(&i, &v)| data[i] = scaled(v).clamp(LEAST, GREATEST));
        }
    }
    let prepared = Prepared {
        foreground: values.len() as f64 / data.len() as f64,
        data,
        stats: Stats {
            shape: volume.shape,
            spacing: volume.spacing(),
            orientation: orientation::code(&volume.affine),
            percentiles: clip,
            warnings,
            ..prepared.stats.clone()
        },
        ..prepared.clone()
    };
    Ok((prepared, reference))
}

/// Points spread evenly over a voxel of the grid, in its own units around its centre: along each axis as many as the
/// image has voxels there.
fn offsets(to_voxel: &Affine) -> Vec<[f64; 3]> {
    let along = [0, 1, 2].map(|r| {
        let length = (0..3).map(|i| to_voxel[i][r].powi(2)).sum::<f64>().sqrt();
        // Sizes that differ in their last digits only are the same.
        let n = (length - 1e-3).ceil().max(1.0);
        (0..n as usize).map(|i| (i as f64 + 0.5) / n - 0.5).collect::<Vec<_>>()
    });
    let [x, y, z] = &along;
    x.iter().flat_map(|&x| y.iter().flat_map(move |&y| z.iter().map(move |&z| [x, y, z]))).collect()
}

/// The mean of `volume` over a mask's voxels (above 0.5); `to_volume` takes millimetres of the mask to millimetres of the
/// volume. `None` where the volume has no voxel of it.
pub fn mean_inside(volume: &Volume, mask: &Volume, to_volume: &Affine) -> Option<f64> {
    let to_voxel = multiply(&inverse(&volume.affine), &multiply(to_volume, &mask.affine));
    let [nx, ny, _] = mask.shape;
    let inside = mask.data.iter().enumerate().filter(|(_, v)| **v > 0.5);
    let values = inside.filter_map(|(i, _)| {
        let voxel = [i % nx, i / nx % ny, i / (nx * ny)].map(|v| v as f64);
        trilinear::value(volume, apply(&to_voxel, voxel))
    });
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), v| (sum + f64::from(v), count + 1.0));
    (count > 0.0).then(|| sum / count)
}

/// Whether two images have the same voxels in the same places, up to a tenth of a voxel and whatever the order of their
/// axes.
pub fn same_grid(a: &Volume, b: &Volume) -> bool {
    let ras = |v: &Volume| {
        let axes = Axes::of(&v.affine);
        (axes.from.map(|r| v.shape[r]), orientation::ras_affine(&v.affine, v.shape, axes))
    };
    let ((shape, at), (other, there)) = (ras(a), ras(b));
    let voxel = a.spacing().into_iter().fold(f64::MAX, f64::min);
    shape == other && super::mask::corner_gap(&at, &there, shape) <= 0.1 * voxel
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{affine::rigid, preprocess};

    /// A box of brain in a volume of 1 mm voxels, `value` of its place in millimetres inside, 0 outside.
    fn image(affine: Affine, shape: [usize; 3], value: impl Fn([f64; 3]) -> f64) -> Volume {
        let [nx, ny, nz] = shape;
        let place = |i: usize| apply(&affine, [i % nx, i / nx % ny, i / (nx * ny)].map(|v| v as f64));
        Volume { shape, affine, data: (0..nx * ny * nz).map(|i| value(place(i)) as f32).collect() }
    }

    fn scan() -> (Volume, Prepared, Preprocessing) {
        let affine = rigid([0.0; 3], [-20.0, -22.0, -18.0], [0.0; 3]);
        let inside = |p: [f64; 3]| p.iter().all(|v| v.abs() < 12.0);
        let wave = |p: [f64; 3]| if inside(p) { 100.0 + p[0] + 2.0 * p[1] } else { 0.0 };
        let volume = image(affine, [41, 45, 37], wave);
        let settings = Preprocessing { grid: [14, 14, 14], spacing: Some(2.0), ..Preprocessing::default() };
        let prepared = preprocess(volume.clone(), None, &settings).unwrap();
        (volume, prepared, settings)
    }

    /// A ramp in an image that lies turned and moved keeps its values, in larger and in smaller voxels.
    #[test]
    fn a_turned_ramp_is_read_where_it_lies() {
        let (_, prepared, settings) = scan();
        for size in [0.8, 3.0] {
            let pose = rigid([0.2, -0.1, 0.3], [5.0, -3.0, 2.0], [0.0; 3]);
            let back = inverse(&pose);
            let n = (100.0 / size) as usize;
            let mut grid = rigid([-0.3, 0.2, 0.1], [0.0; 3], [0.0; 3]);
            for row in &mut grid[..3] {
                row[..3].iter_mut().for_each(|v| *v *= size);
                row[3] = -row[..3].iter().sum::<f64>() * n as f64 / 2.0;
            }
            let ramp = |p: [f64; 3]| 50.0 + p[0] - 2.0 * p[1] + 0.5 * p[2];
            let other = image(grid, [n; 3], |p| ramp(apply(&back, p)));
            let (out, reference) =
                preprocess_onto(&other, &prepared, &pose, Scale::Region(50.0), &settings).unwrap();
            assert_eq!(reference, Some(50.0));
            for (i, (&v, &own)) in out.data.iter().zip(&prepared.data).enumerate() {
                let p = apply(&prepared.affine, [i / 196, i / 14 % 14, i % 14].map(|v| v as f64));
                let expected = 2.0 * (ramp(p) / 50.0 - 1.0);
                if own > BACKGROUND {
                    assert!((f64::from(v) - expected).abs() < 1e-4, "{v} for {expected} at {p:?}");
                } else {
                    assert_eq!(v, BACKGROUND);
                }
            }
        }
    }

    #[test]
    fn scales_are_what_they_say() {
        let (volume, prepared, settings) = scan();
        let stay = crate::image::affine::IDENTITY;
        let flat = |value: f64| image(volume.affine, volume.shape, |_| value);
        let onto = |volume: &Volume, scale| preprocess_onto(volume, &prepared, &stay, scale, &settings);
        let brain = |p: &Prepared| p.data.iter().copied().find(|v| *v > BACKGROUND).unwrap();
        // By a region's mean the level stays, by the brain's own it goes.
        for (value, expected) in [(0.0, -2.0), (10.0, 0.0), (15.0, 1.0), (40.0, 4.0)] {
            assert_eq!(brain(&onto(&flat(value), Scale::Region(10.0)).unwrap().0), expected);
        }
        let (out, mean) = onto(&flat(15.0), Scale::Brain).unwrap();
        assert_eq!((brain(&out), mean), (0.0, Some(15.0)));
        assert!(onto(&flat(40.0), Scale::Region(10.0)).unwrap().0.stats.warnings[0].contains("3 times"));
        assert!(matches!(onto(&flat(0.0), Scale::Brain), Err(Error::Reference { .. })));
        assert!(matches!(onto(&flat(3.0), Scale::ZScore), Err(Error::Constant(_))));
        // The scan on its own grid is the scan, where smoothing by other weights changes nothing.
        let ramp = image(volume.affine, volume.shape, |p| 100.0 + p[0] + 2.0 * p[1]);
        let own = preprocess(ramp.clone(), Some(volume.clone()), &settings).unwrap();
        let (same, _) = preprocess_onto(&ramp, &own, &stay, Scale::ZScore, &settings).unwrap();
        let worst = same.data.iter().zip(&own.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{worst}");
        assert!(same_grid(&volume, &flat(1.0)));

        let region =
            Volume { data: volume.data.iter().map(|&v| f32::from(v > 0.0)).collect(), ..volume.clone() };
        let mean = mean_inside(&volume, &region, &stay).unwrap();
        assert!((mean - 100.0).abs() < 1e-3, "{mean}");
        assert_eq!(mean_inside(&volume, &flat(0.0), &stay), None);
    }

    #[test]
    fn brain_beyond_the_image_is_background_and_said() {
        let (volume, prepared, settings) = scan();
        let half = image(volume.affine, [21, 45, 37], |p| p[2]);
        let stay = crate::image::affine::IDENTITY;
        let (out, _) = preprocess_onto(&half, &prepared, &stay, Scale::ZScore, &settings).unwrap();
        assert!((out.foreground / prepared.foreground - 0.5).abs() < 0.1);
        assert!(out.stats.warnings[0].contains("of the brain lies outside"), "{:?}", out.stats.warnings);
    }
}
