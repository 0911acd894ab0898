//! The picture of masked autoencoding: original, masked input, reconstruction and their difference, side by side.
//!
//! Neurological convention: the viewer's left is the subject's left, front and top are up; the letters in the corners
//! of the originals say so (L, R, P, A). One grey window per sample, from its original, serves all of its columns, so
//! brightness can be compared; the difference is orange where the reconstruction is brighter and blue where darker.
use std::{io::Cursor, path::Path};

use image::{ImageBuffer, ImageFormat, Pixel, PixelWithColorType, Rgb, RgbImage};

use super::letters;
use crate::{error::FileError, file::write_bytes};

/// Three volumes of one scan in model order: `[x][y][z]` in RAS, z running fastest.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// What the model should see.
    pub original: &'a [f32],
    /// What it sees: NaN where patches are hidden.
    pub masked: &'a [f32],
    /// What it makes of that, in the original's intensities.
    pub reconstruction: &'a [f32],
}

/// A plane through a volume, by axes.
struct Plane {
    name: &'static str,
    through: usize,
    across: usize,
    up: usize,
    /// What lies at the left and at the right edge.
    ends: [&'static str; 2],
}

const PLANES: [Plane; 3] = [
    Plane { name: "AXIAL", through: 2, across: 0, up: 1, ends: ["L", "R"] },
    Plane { name: "CORONAL", through: 1, across: 0, up: 2, ends: ["L", "R"] },
    Plane { name: "SAGITTAL", through: 0, across: 1, up: 2, ends: ["P", "A"] },
];
const COLUMNS: [&str; 4] = ["ORIGINAL", "MASKED", "RECONSTRUCTION", "DIFFERENCE"];

const PAGE: Rgb<u8> = Rgb([18, 18, 22]);
const LABEL: Rgb<u8> = Rgb([150, 152, 160]);
const MARK: Rgb<u8> = Rgb([235, 200, 120]);
/// Hidden patches: unlike any grey of the image.
const HIDDEN: Rgb<u8> = Rgb([44, 50, 66]);
/// Pixels between cells, and between samples.
const GAP: u32 = 4;
const SAMPLE_GAP: u32 = 24;
const MARGIN: u32 = 16;
/// A voxel is drawn as the smallest square that makes the longest axis at least this long: 3x3 pixels on a 96 grid.
const CELL: usize = 288;

/// Draws `samples` on a grid of `dims` voxels, a block of rows each: `slices` evenly spaced slices of each plane, and
/// in columns the original, the masked input, the reconstruction and reconstruction - original.
pub fn draw(samples: &[Sample], dims: [usize; 3], slices: usize) -> RgbImage {
    let voxels: usize = dims.iter().product();
    for s in samples {
        let lengths = [s.original.len(), s.masked.len(), s.reconstruction.len()];
        assert_eq!(lengths, [voxels; 3], "volumes of {dims:?} voxels");
    }
    let longest = dims.into_iter().max().expect("three axes");
    let scale = CELL.div_ceil(longest) as u32;
    let size = |axis: usize| dims[axis] as u32 * scale;
    let gutter = MARGIN + letters::width("SAGITTAL") + MARGIN;
    let column = size(0).max(size(1)) + GAP;
    let block: u32 = PLANES.iter().map(|p| slices as u32 * (size(p.up) + GAP)).sum::<u32>() + SAMPLE_GAP;
    let top = MARGIN + letters::HEIGHT + MARGIN;
    let width = gutter + COLUMNS.len() as u32 * column + MARGIN;
    let height = top + samples.len() as u32 * block - SAMPLE_GAP + MARGIN;
    let mut picture = RgbImage::from_pixel(width, height, PAGE);

    for (i, name) in (0..).zip(COLUMNS) {
        let middle = gutter + i * column + column / 2;
        letters::draw(&mut picture, name, middle - letters::width(name) / 2, MARGIN, LABEL);
    }
    let mut y = top;
    for sample in samples {
        let [low, high] = window(sample.original);
        let grey =
            |v: f32| if v.is_nan() { HIDDEN } else { Rgb([((v - low) / (high - low) * 255.0) as u8; 3]) };
        let shift = |at: usize| difference((sample.reconstruction[at] - sample.original[at]) / (high - low));
        for plane in &PLANES {
            let indent = gutter - MARGIN - letters::width(plane.name);
            letters::draw(
                &mut picture,
                plane.name,
                indent,
                y + (size(plane.up) - letters::HEIGHT) / 2,
                LABEL,
            );
            for i in 0..slices {
                let slice = dims[plane.through] * (i + 1) / (slices + 1);
                let x = |c: u32| gutter + c * column + (column - GAP - size(plane.across)) / 2;
                let mut cell = |c: u32, colour: &dyn Fn(usize) -> Rgb<u8>| {
                    for (dx, dy) in
                        (0..size(plane.across)).flat_map(|dx| (0..size(plane.up)).map(move |dy| (dx, dy)))
                    {
                        let mut at = [slice; 3];
                        at[plane.across] = (dx / scale) as usize;
                        at[plane.up] = dims[plane.up] - 1 - (dy / scale) as usize;
                        let voxel = (at[0] * dims[1] + at[1]) * dims[2] + at[2];
                        picture.put_pixel(x(c) + dx, y + dy, colour(voxel));
                    }
                };
                cell(0, &|at| grey(sample.original[at]));
                cell(1, &|at| grey(sample.masked[at]));
                cell(2, &|at| grey(sample.reconstruction[at]));
                cell(3, &shift);
                let right = x(0) + size(plane.across) - letters::width("R") - GAP;
                for (end, x) in plane.ends.into_iter().zip([x(0) + GAP, right]) {
                    // A shadow keeps the letter legible over bright skin.
                    letters::draw(&mut picture, end, x + 1, y + GAP + 1, Rgb([0; 3]));
                    letters::draw(&mut picture, end, x, y + GAP, MARK);
                }
                y += size(plane.up) + GAP;
            }
        }
        y += SAMPLE_GAP;
    }
    picture
}

/// Writes `picture` as a PNG, whole or not at all.
///
/// # Errors
/// [`FileError`] when the file cannot be written.
pub fn write<P>(path: &Path, picture: &ImageBuffer<P, Vec<u8>>) -> Result<(), FileError>
where
    P: Pixel<Subpixel = u8> + PixelWithColorType,
{
    write_bytes(path, &png(picture))
}

/// `picture` as a PNG.
pub(super) fn png<P>(picture: &ImageBuffer<P, Vec<u8>>) -> Vec<u8>
where
    P: Pixel<Subpixel = u8> + PixelWithColorType,
{
    let mut png = Cursor::new(Vec::new());
    picture
        .write_to(&mut png, ImageFormat::Png)
        .expect("eight bits are PNG's own, and memory takes all bytes");
    png.into_inner()
}

/// Black and white: the 1st and the 99.5th percentile of the finite voxels, so that a few bright vessels do not dim
/// the brain.
pub(super) fn window(volume: &[f32]) -> [f32; 2] {
    let mut ascending: Vec<f32> = volume.iter().copied().filter(|v| v.is_finite()).collect();
    if ascending.is_empty() {
        return [0.0, 1.0];
    }
    ascending.sort_unstable_by(f32::total_cmp);
    let at = |q: f64| ascending[(q * (ascending.len() - 1) as f64) as usize];
    let (low, high) = (at(0.01), at(0.995));
    if high > low { [low, high] } else { [low, low + 1.0] }
}

/// A difference in units of the grey window; full colour from half of the window on.
fn difference(d: f32) -> Rgb<u8> {
    if d.is_nan() {
        return HIDDEN;
    }
    let full = if d > 0.0 { [255.0, 160.0, 64.0] } else { [72.0, 150.0, 255.0] };
    Rgb(full.map(|c: f32| (c * (2.0 * d.abs()).min(1.0)) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Left is left and front is up: a bright voxel is found where the convention puts it.
    #[test]
    fn a_voxel_at_the_left_front_top_is_drawn_left_and_up() {
        let dims = [96, 96, 96];
        let mut volume = vec![0.0; 96 * 96 * 96];
        let at = |x: usize, y: usize, z: usize| (x * 96 + y) * 96 + z;
        // A bright block of x < 20, y > 75, z > 40: the middle axial slice shows its upper left corner.
        for (x, y, z) in (0..20).flat_map(|x| (76..96).flat_map(move |y| (41..96).map(move |z| (x, y, z)))) {
            volume[at(x, y, z)] = 1.0;
        }
        let mut masked = volume.clone();
        masked[at(95, 0, 48)] = f32::NAN;
        let sample = Sample { original: &volume, masked: &masked, reconstruction: &volume };
        let picture = draw(&[sample], dims, 1);
        let (gutter, top) = (2 * MARGIN + letters::width("SAGITTAL"), 2 * MARGIN + letters::HEIGHT);
        let corner = |column: u32, dx, dy| *picture.get_pixel(gutter + column * (288 + GAP) + dx, top + dy);
        assert_eq!(corner(0, 0, 0), Rgb([255; 3]));
        assert_eq!(corner(0, 287, 0), Rgb([0; 3]));
        assert_eq!(corner(0, 0, 287), Rgb([0; 3]));
        assert_eq!(corner(1, 287, 287), HIDDEN);
        assert_eq!(corner(3, 0, 0), Rgb([0; 3]));
    }

    #[test]
    fn a_written_montage_is_a_png_of_the_size_drawn() {
        let volume = vec![f32::NAN; 8 * 10 * 6];
        let sample = Sample { original: &volume, masked: &volume, reconstruction: &volume };
        let picture = draw(&[sample, sample], [8, 10, 6], 2);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("montage.png");
        write(&path, &picture).unwrap();
        assert_eq!(image::open(&path).unwrap().to_rgb8(), picture);
    }
}
