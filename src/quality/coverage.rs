//! What of the brain is there: cut faces, missing slices, size, symmetry, parts and holes. Ratings by eye and learned
//! graders miss these most.
use super::{Measures, Region, scene::Scene};
use crate::image::components;

/// Adult brains, in millimetres from left to right, back to front, and bottom to top.
const EXTENT: [[f64; 2]; 3] = [[126.0, 146.0], [158.0, 193.0], [124.0, 164.0]];
/// Adult brains with their fluid, in millilitres.
const VOLUME: [f64; 2] = [900.0, 1900.0];
/// Below this share of the usual slice's mean, a slice of the brain is missing.
const DARK: f64 = 0.1;
/// Parts smaller than this are specks, in millilitres.
const SPECK: f64 = 0.1;

/// Beyond a range, in its unit.
fn beyond(v: f64, [low, high]: [f64; 2]) -> f64 {
    (low - v).max(v - high).max(0.0)
}

/// Measures, and returns the planes (axis, place) within the extent that hold nothing.
pub(super) fn measure(scene: &Scene, m: &mut Measures) -> Vec<(usize, usize)> {
    let (shape, spacing) = (scene.shape, scene.spacing);
    let [least, most] =
        [spacing.iter().copied().fold(f64::MAX, f64::min), spacing.iter().copied().fold(0.0, f64::max)];
    m.set("spacing_max", most);
    m.set("anisotropy", most / least);
    for (r, axis) in ["x", "y", "z"].into_iter().enumerate() {
        m.set(&format!("field_{axis}"), shape[r] as f64 * spacing[r]);
    }
    // The core of a head touches no face and has no size of its own: the head is looked at instead.
    let of_head = match (&scene.head, scene.region) {
        (Some(head), Region::HeadCore) => Some(head.look_up(&head.inside, shape, spacing)),
        _ => None,
    };
    let inside = of_head.as_deref().unwrap_or(&scene.brain);
    let planes = Planes::of(scene, inside);
    let square_cm = |r: usize| spacing[(r + 1) % 3] * spacing[(r + 2) % 3] / 100.0;
    let mut cut = 0.0;
    for (r, names) in [["left", "right"], ["back", "front"], ["bottom", "top"]].into_iter().enumerate() {
        for (name, plane) in names.into_iter().zip([0, shape[r] - 1]) {
            let area = planes.count[r][plane] as f64 * square_cm(r);
            m.set(&format!("cut_{name}"), area);
            // A head goes on as the neck.
            cut += if of_head.is_some() && name == "bottom" { 0.0 } else { area };
        }
    }
    m.set("cut_area", cut);
    let (mut missing, mut off, mut empty) = (0.0_f64, 0.0_f64, Vec::new());
    for (r, axis) in ["x", "y", "z"].into_iter().enumerate() {
        let counts = &planes.count[r];
        let low = counts.iter().position(|&n| n > 0).unwrap_or(0);
        let high = counts.iter().rposition(|&n| n > 0).map_or(0, |i| i + 1);
        let extent = (high - low) as f64 * spacing[r];
        m.set(&format!("extent_{axis}"), extent);
        off = off.max(beyond(extent, EXTENT[r]));
        let mut means: Vec<f32> = planes.mean(r, low..high).map(|v| v as f32).collect();
        let usual = super::percentile(&mut means, 0.5);
        // A slice without a voxel of the mask has no mean: NaN is below nothing, so it is asked for by its count.
        let gone = |i: usize| counts[i] == 0 || planes.sum[r][i] / (counts[i] as f64) < DARK * usual;
        let before = empty.len();
        empty.extend((low..high).filter(|&i| gone(i)).map(|i| (r, i)));
        missing = missing.max((empty.len() - before) as f64 / (high - low).max(1) as f64);
    }
    m.set("missing_slices", missing);
    let voxel = spacing.iter().product::<f64>() / 1000.0;
    let volume = inside.iter().filter(|&&i| i).count() as f64 * voxel;
    m.set("volume", volume);
    if of_head.is_none() {
        m.set("extent_off", off);
        m.set("volume_off", beyond(volume, VOLUME) / VOLUME[0]);
    }
    m.set("asymmetry", asymmetry(shape, inside, &planes));
    parts(shape, spacing, inside, m);
    empty
}

/// Voxels of the mask in every plane, and the sum of the image there.
struct Planes {
    count: [Vec<usize>; 3],
    sum: [Vec<f64>; 3],
}

impl Planes {
    fn of(scene: &Scene, inside: &[bool]) -> Planes {
        let [nx, ny, _] = scene.shape;
        let mut p = Planes { count: scene.shape.map(|n| vec![0; n]), sum: scene.shape.map(|n| vec![0.0; n]) };
        for (row, (values, inside)) in scene.data.chunks_exact(nx).zip(inside.chunks_exact(nx)).enumerate() {
            let (mut count, mut sum) = (0, 0.0);
            for (x, (&v, _)) in values.iter().zip(inside).enumerate().filter(|(_, (_, i))| **i) {
                count += 1;
                sum += f64::from(v);
                p.count[0][x] += 1;
                p.sum[0][x] += f64::from(v);
            }
            for (r, i) in [(1, row % ny), (2, row / ny)] {
                p.count[r][i] += count;
                p.sum[r][i] += sum;
            }
        }
        p
    }
    /// The mean of each plane that holds something.
    fn mean(&self, r: usize, range: std::ops::Range<usize>) -> impl Iterator<Item = f64> + '_ {
        range.filter(move |&i| self.count[r][i] > 0).map(move |i| self.sum[r][i] / self.count[r][i] as f64)
    }
}

/// 1 - Dice overlap of the mask with its mirror image, left for right about its own centre.
fn asymmetry([nx, _, _]: [usize; 3], inside: &[bool], planes: &Planes) -> f64 {
    let total: usize = planes.count[0].iter().sum();
    let moment: f64 = planes.count[0].iter().enumerate().map(|(x, &n)| x as f64 * n as f64).sum();
    let twice = (2.0 * moment / total as f64).round() as usize;
    let shared: usize = inside
        .chunks_exact(nx)
        .map(|row| {
            (0..nx).filter(|&x| row[x] && twice.checked_sub(x).is_some_and(|x| x < nx && row[x])).count()
        })
        .sum();
    1.0 - shared as f64 / total as f64
}

/// Parts and holes, looked at in steps of about 2 mm.
fn parts(shape: [usize; 3], spacing: [f64; 3], inside: &[bool], m: &mut Measures) {
    let step = spacing.map(|mm| ((2.0 / mm).round() as usize).max(1));
    let small = [0, 1, 2].map(|r| shape[r].div_ceil(step[r]));
    let mut cells = Vec::with_capacity(small.iter().product());
    for z in (0..shape[2]).step_by(step[2]) {
        for y in (0..shape[1]).step_by(step[1]) {
            let row = shape[0] * (y + shape[1] * z);
            cells.extend((0..shape[0]).step_by(step[0]).map(|x| inside[row + x]));
        }
    }
    let ml = (0..3).map(|r| step[r] as f64 * spacing[r]).product::<f64>() / 1000.0;
    let (_, found) = components(&cells, small);
    let total: usize = found.iter().map(|p| p.voxels).sum();
    let largest = found.iter().map(|p| p.voxels).max().unwrap_or(0);
    m.set("components", found.iter().filter(|p| p.voxels as f64 * ml >= SPECK).count() as f64);
    m.set("apart", if total > 0 { 1.0 - largest as f64 / total as f64 } else { 0.0 });
    cells.iter_mut().for_each(|c| *c = !*c);
    let (_, found) = components(&cells, small);
    let holes: usize = found.iter().filter(|p| !p.touches_face).map(|p| p.voxels).sum();
    m.set("holes", holes as f64 * ml);
}
