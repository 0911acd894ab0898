//! A contact sheet: many scans on one page, three small slices each, with two lines below; and the same slices as tiles
//! of one picture, for pages that show some of them.
use super::letters;
use crate::image::Volume;
use image::{
    GrayImage, Rgb, RgbImage,
    imageops::{self, FilterType},
};

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

/// Pixels of a tile, across and down.
pub(super) const TILE: [u32; 2] = [192, 64];
/// Tiles in a row.
const TILES: u32 = 8;

/// Where tile number `i` begins in a picture of tiles.
pub(super) fn tile(i: usize) -> [u32; 2] {
    let i = i as u32;
    [i % TILES * TILE[0], i / TILES * TILE[1]]
}

/// A picture of tiles in the order they come, two thirds of their size on the sheet; what could not be read is black. Greys are
/// in 32 steps: nobody sees it at this size, and the file is half as large.
pub fn tiles<'a>(thumbnails: impl ExactSizeIterator<Item = Option<&'a Thumbnail>>) -> GrayImage {
    let mut picture = empty(thumbnails.len());
    for (i, thumbnail) in thumbnails.enumerate() {
        let Some(Thumbnail(grey)) = thumbnail else { continue };
        let whole =
            GrayImage::from_raw(WIDTH, EDGE as u32, grey.clone()).expect("a thumbnail has these pixels");
        let mut small = imageops::resize(&whole, TILE[0], TILE[1], FilterType::Triangle);
        small.pixels_mut().for_each(|p| p.0[0] = p.0[0] / 8 * 8 + p.0[0] / 64);
        let [x, y] = tile(i);
        imageops::replace(&mut picture, &small, x.into(), y.into());
    }
    picture
}

/// Some tiles of a picture of `count`, in the order of their numbers; `None` where the picture is of another size.
pub(super) fn pick(picture: &GrayImage, count: usize, numbers: &[usize]) -> Option<GrayImage> {
    if picture.dimensions() != empty(count).dimensions() {
        return None;
    }
    let mut picked = empty(numbers.len());
    for (i, &number) in numbers.iter().enumerate() {
        let ([x, y], [to_x, to_y]) = (tile(number), tile(i));
        let one = imageops::crop_imm(picture, x, y, TILE[0], TILE[1]).to_image();
        imageops::replace(&mut picked, &one, to_x.into(), to_y.into());
    }
    Some(picked)
}

fn empty(count: usize) -> GrayImage {
    let count = count as u32;
    GrayImage::new(TILES.min(count.max(1)) * TILE[0], count.max(1).div_ceil(TILES) * TILE[1])
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

    #[test]
    fn tiles_stand_in_their_order_and_can_be_picked() {
        let grey = |v: u8| Thumbnail(vec![v; WIDTH as usize * EDGE]);
        let thumbnails: Vec<Option<Thumbnail>> =
            (0..10).map(|i| (i != 3).then(|| grey(10 * i as u8 + 80))).collect();
        let picture = tiles(thumbnails.iter().map(Option::as_ref));
        assert_eq!(picture.dimensions(), (8 * 192, 2 * 64));
        let at = |p: &GrayImage, i: usize| p.get_pixel(tile(i)[0] + 5, tile(i)[1] + 5).0[0];
        assert_eq!([at(&picture, 0), at(&picture, 3), at(&picture, 9)], [81, 0, 170]);
        let picked = pick(&picture, 10, &[9, 0]).unwrap();
        assert_eq!([at(&picked, 0), at(&picked, 1)], [170, 81]);
        assert!(pick(&picture, 30, &[0]).is_none());
    }
}
