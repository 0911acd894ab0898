//! A contact sheet: many scans on one page, three small slices each, with two lines below.
use super::letters;
use crate::image::Volume;
use image::{Rgb, RgbImage};

/// Pixels along an edge of a slice.
const EDGE: usize = 96;
/// What the edge shows, in millimetres: a head with some air.
const FIELD: f64 = 240.0;
/// Scans in a row.
const COLUMNS: u32 = 6;
const GAP: u32 = 12;
const LINE: u32 = letters::HEIGHT + 4;
const WIDTH: u32 = 3 * EDGE as u32;
const HEIGHT: u32 = EDGE as u32 + 2 * LINE + 4;
const PAGE: Rgb<u8> = Rgb([18, 18, 22]);
const LABEL: Rgb<u8> = Rgb([150, 152, 160]);

/// An axial, a coronal and a sagittal slice, small and grey.
#[derive(Clone, Debug)]
pub struct Thumbnail(Vec<u8>);

/// One scan on the sheet.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The slices, where the scan could be read.
    pub thumbnail: Option<Thumbnail>,
    /// What stands below.
    pub lines: [String; 2],
    /// The colour of the second line.
    pub colour: [u8; 3],
}

impl Thumbnail {
    /// Of a scan in RAS, through its centre of brightness. White is the 99.5th percentile of the slices.
    pub fn of(volume: &Volume) -> Thumbnail {
        let (shape, spacing) = (volume.shape, volume.spacing());
        let value = |i: usize| if volume.data[i].is_finite() { volume.data[i] } else { 0.0 };
        let least = (0..volume.data.len()).map(value).fold(f32::MAX, f32::min);
        let (mut total, mut moment) = (0.0, [0.0; 3]);
        // Every 7th voxel is plenty for a centre; 7 divides no usual number of voxels.
        for i in (0..volume.data.len()).step_by(7) {
            let v = f64::from(value(i) - least);
            total += v;
            let at = [i % shape[0], i / shape[0] % shape[1], i / (shape[0] * shape[1])];
            (0..3).for_each(|r| moment[r] += v * at[r] as f64);
        }
        let centre = moment.map(|m| if total > 0.0 { m / total } else { 0.0 });
        let mut seen = vec![least; 3 * EDGE * EDGE];
        for (plane, [through, across, up]) in [[2, 0, 1], [1, 0, 2], [0, 1, 2]].into_iter().enumerate() {
            for row in 0..EDGE {
                for column in 0..EDGE {
                    let mm = |i: usize| ((i as f64 + 0.5) / EDGE as f64 - 0.5) * FIELD;
                    let mut at = centre;
                    at[across] += mm(column) / spacing[across];
                    at[up] -= mm(row) / spacing[up];
                    let within =
                        [through, across, up].iter().all(|&r| at[r] >= -0.5 && at[r] < shape[r] as f64 - 0.5);
                    if within {
                        let [x, y, z] = at.map(|v| v.round().max(0.0) as usize);
                        seen[row * 3 * EDGE + plane * EDGE + column] =
                            value(x + shape[0] * (y + shape[1] * z));
                    }
                }
            }
        }
        let mut ascending = seen.clone();
        ascending.sort_unstable_by(f32::total_cmp);
        let white = ascending[(ascending.len() - 1) * 995 / 1000];
        let scale = if white > least { 255.0 / (white - least) } else { 0.0 };
        Thumbnail(seen.iter().map(|v| ((v - least) * scale).min(255.0) as u8).collect())
    }
}

/// Draws the cells in rows, in the order they come.
pub fn draw(cells: &[Cell]) -> RgbImage {
    let rows = (cells.len() as u32).div_ceil(COLUMNS);
    let columns = COLUMNS.min(cells.len() as u32);
    let mut page = RgbImage::from_pixel(GAP + columns * (WIDTH + GAP), GAP + rows * (HEIGHT + GAP), PAGE);
    for (i, cell) in (0..).zip(cells) {
        let (left, top) = (GAP + i % COLUMNS * (WIDTH + GAP), GAP + i / COLUMNS * (HEIGHT + GAP));
        for y in 0..EDGE as u32 {
            for x in 0..WIDTH {
                let grey = cell.thumbnail.as_ref().map_or(0, |t| t.0[(y * WIDTH + x) as usize]);
                page.put_pixel(left + x, top + y, Rgb([grey; 3]));
            }
        }
        for ((n, text), colour) in (0..).zip(&cell.lines).zip([LABEL, Rgb(cell.colour)]) {
            let fits = WIDTH as usize / letters::width("-").max(1) as usize;
            let text: String = letters::spell(text).chars().take(fits).collect();
            letters::draw(&mut page, &text, left, top + EDGE as u32 + 4 + n * LINE, colour);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bright_front_is_up_and_scans_that_cannot_be_seen_are_black() {
        let mut volume = Volume { shape: [40; 3], affine: [[0.0; 4]; 4], data: vec![1.0; 64_000] };
        (0..3).for_each(|r| volume.affine[r][r] = 6.0);
        (0..64_000).filter(|i| i / 40 % 40 >= 30).for_each(|i| volume.data[i] = 1.2);
        let seen = Thumbnail::of(&volume);
        let cell =
            |thumbnail| Cell {
                thumbnail, lines: ["sub-1_ü".into(), "POOR 1.5".into()], colour: [255, 0, 0]
            };
        let page = draw(&[cell(Some(seen)), cell(None)]);
        assert_eq!((page.width(), page.height()), (2 * (WIDTH + GAP) + GAP, HEIGHT + 2 * GAP));
        let at = |x: u32, y: u32| page.get_pixel(GAP + x, GAP + y).0[0];
        // The axial slice comes first; the bright front is its centre of brightness, and the back lies below.
        assert!(at(48, 44) > at(48, 80), "{} {}", at(48, 44), at(48, 80));
        assert_eq!(at(WIDTH + GAP + 48, 48), 0);
        assert!(page.pixels().any(|p| p.0 == [255, 0, 0]));
    }
}
