//! Which way a volume's axes run, and how to see it as RAS: x to the right, y to the front, z up.
//!
//! Reorientation only permutes and flips axes, so no voxel's value changes. A scan taken obliquely keeps its
//! obliquity: each axis is named after the direction it is closest to.
use super::Volume;
use std::ops::Range;

/// The voxel axis that runs along each of x, y and z, and whether it runs backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axes {
    /// `from[r]`: the voxel axis closest to RAS axis `r`.
    pub from: [usize; 3],
    /// `flip[r]`: that axis runs to the left, the back or the bottom.
    pub flip: [bool; 3],
}

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

impl Axes {
    /// The assignment of voxel axes to x, y and z with the greatest sum of |cosines|.
    pub fn of(affine: &[[f64; 4]; 4]) -> Axes {
        let spacing = super::spacing(affine);
        let score =
            |from: [usize; 3]| (0..3).map(|r| (affine[r][from[r]] / spacing[from[r]]).abs()).sum::<f64>();
        let better = |a: [usize; 3], b: [usize; 3]| if score(b) > score(a) { b } else { a };
        let from = ORDERS.into_iter().reduce(better).expect("six orders");
        Axes { from, flip: [0, 1, 2].map(|r| affine[r][from[r]] < 0.0) }
    }
}

/// The direction each voxel axis runs to, as nibabel's `aff2axcodes` has it: "RAS", "PSR".
pub fn code(affine: &[[f64; 4]; 4]) -> String {
    let axes = Axes::of(affine);
    let mut letters = [' '; 3];
    for r in 0..3 {
        letters[axes.from[r]] = [['R', 'A', 'S'], ['L', 'P', 'I']][usize::from(axes.flip[r])][r];
    }
    letters.iter().collect()
}

/// The voxel axis that runs along each of x, y and z, by such a code; a letter that is missing stands in its place.
pub(super) fn axes(code: &str) -> [usize; 3] {
    let along = |r: usize| code.find([['R', 'L'], ['A', 'P'], ['S', 'I']][r]);
    [0, 1, 2].map(|r| along(r).filter(|&axis| axis < 3).unwrap_or(r))
}

/// The determinant of the affine's 3 x 3 part.
pub(super) fn determinant(m: &[[f64; 4]; 4]) -> f64 {
    m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
        + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
}

/// The affine of the same voxels once their axes have been put into RAS order.
pub(super) fn ras_affine(affine: &[[f64; 4]; 4], shape: [usize; 3], axes: Axes) -> [[f64; 4]; 4] {
    let mut m = *affine;
    for i in 0..3 {
        for r in 0..3 {
            let column = affine[i][axes.from[r]];
            if axes.flip[r] {
                m[i][r] = -column;
                m[i][3] += column * (shape[axes.from[r]] as f64 - 1.0);
            } else {
                m[i][r] = column;
            }
        }
    }
    m
}

/// Voxels seen as RAS, wherever in memory they lie: voxel (x, y, z) is `data[start + x·stride[0] + ..]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) data: &'a [f32],
    /// Along x, y and z.
    pub(super) shape: [usize; 3],
    /// Negative along a flipped axis; ±1 along one axis.
    pub(super) stride: [isize; 3],
    pub(super) start: usize,
}

impl<'a> View<'a> {
    /// Compact voxels whose memory axes have lengths `shape`, the first fastest.
    pub(super) fn new(data: &'a [f32], shape: [usize; 3], axes: Axes) -> View<'a> {
        let steps = [1, shape[0], shape[0] * shape[1]];
        let mut view = View { data, shape: axes.from.map(|a| shape[a]), stride: [0; 3], start: 0 };
        for r in 0..3 {
            view.stride[r] = steps[axes.from[r]] as isize;
            if axes.flip[r] {
                view.start += (view.shape[r] - 1) * steps[axes.from[r]];
                view.stride[r] = -view.stride[r];
            }
        }
        view
    }
    pub(super) fn of(volume: &'a Volume) -> View<'a> {
        View::new(&volume.data, volume.shape, Axes::of(&volume.affine))
    }
    /// Where voxel (x, y, z) lies.
    pub(super) fn at(&self, [x, y, z]: [usize; 3]) -> usize {
        let [sx, sy, sz] = self.stride;
        self.start.wrapping_add_signed(x as isize * sx + y as isize * sy + z as isize * sz)
    }
    /// The RAS axes from the one whose voxels are neighbours in memory to the one whose voxels are furthest apart.
    pub(super) fn memory_order(&self) -> [usize; 3] {
        let mut order = [0, 1, 2];
        // An axis of one voxel has no neighbours, so it never has to be the fastest.
        order.sort_by_key(|&r| (self.stride[r].unsigned_abs(), self.shape[r] == 1));
        order
    }
    /// The part within three index ranges.
    pub(super) fn crop(&self, ranges: &[Range<usize>; 3]) -> View<'a> {
        let start = self.at([0, 1, 2].map(|r| ranges[r].start));
        View { start, shape: [0, 1, 2].map(|r| ranges[r].len()), ..*self }
    }
    /// Copies the voxels after `load` into a new array whose axes, fastest first, are `order`.
    pub(super) fn copy(&self, order: [usize; 3], load: impl Fn(f32) -> f32 + Copy) -> Vec<f32> {
        let mut out = vec![0.0; self.shape.iter().product()];
        if out.is_empty() {
            return out;
        }
        if self.memory_order()[0] == order[0] {
            self.copy_rows(order, load, &mut out);
        } else {
            self.transpose(order, load, &mut out);
        }
        out
    }
    /// Where neighbours stay neighbours.
    fn copy_rows(&self, [fast, mid, slow]: [usize; 3], load: impl Fn(f32) -> f32 + Copy, out: &mut [f32]) {
        let n = self.shape[fast];
        for (row, to) in out.chunks_exact_mut(n).enumerate() {
            let mut corner = [0; 3];
            (corner[mid], corner[slow]) = (row % self.shape[mid], row / self.shape[mid]);
            let from = self.at(corner);
            if self.stride[fast] >= 0 {
                to.iter_mut().zip(&self.data[from..from + n]).for_each(|(to, &v)| *to = load(v));
            } else {
                let reversed = self.data[from + 1 - n..=from].iter().rev();
                to.iter_mut().zip(reversed).for_each(|(to, &v)| *to = load(v));
            }
        }
    }
    /// Where another axis becomes the fastest: tiles of 16 x 16 voxels, since 16 floats are a cache line on both
    /// sides. Each goes through a buffer, because lines a power of two apart push each other out of the cache.
    fn transpose(&self, [fast, mid, slow]: [usize; 3], load: impl Fn(f32) -> f32 + Copy, out: &mut [f32]) {
        const TILE: usize = 16;
        let near = self.memory_order()[0];
        let other = 3 - fast - near;
        let mut steps = [1; 3];
        (steps[mid], steps[slow]) = (self.shape[fast], self.shape[fast] * self.shape[mid]);
        let backwards = self.stride[near] < 0;
        let mut tile = [[0.0; TILE]; TILE];
        for o in 0..self.shape[other] {
            for a in (0..self.shape[near]).step_by(TILE) {
                let height = TILE.min(self.shape[near] - a);
                for b in (0..self.shape[fast]).step_by(TILE) {
                    let width = TILE.min(self.shape[fast] - b);
                    for (j, line) in tile[..width].iter_mut().enumerate() {
                        let mut corner = [0; 3];
                        // The tile's end that comes first in memory.
                        let first = if backwards { a + height - 1 } else { a };
                        (corner[other], corner[near], corner[fast]) = (o, first, b + j);
                        let from = self.at(corner);
                        line[..height].copy_from_slice(&self.data[from..from + height]);
                    }
                    for i in 0..height {
                        let k = if backwards { height - 1 - i } else { i };
                        let to = o * steps[other] + (a + i) * steps[near] + b;
                        for (to, line) in out[to..to + width].iter_mut().zip(&tile) {
                            *to = load(line[k]);
                        }
                    }
                }
            }
        }
    }
}

/// The same voxels with x, y, z as first, second and third axis, and the affine that belongs to them.
pub fn to_ras(volume: Volume) -> Volume {
    let axes = Axes::of(&volume.affine);
    if axes == (Axes { from: [0, 1, 2], flip: [false; 3] }) {
        return volume;
    }
    let view = View::of(&volume);
    let affine = ras_affine(&volume.affine, volume.shape, axes);
    Volume { shape: view.shape, affine, data: view.copy([0, 1, 2], |v| v) }
}

/// Voxels in RAS order, x fastest and of lengths `shape`, in the order of a file whose axes are `axes`.
pub fn from_ras(data: &[f32], shape: [usize; 3], axes: Axes) -> Vec<f32> {
    // What leads back: each axis of the file is one of x, y and z.
    let mut back = Axes { from: [0; 3], flip: [false; 3] };
    for r in 0..3 {
        (back.from[axes.from[r]], back.flip[axes.from[r]]) = (r, axes.flip[r]);
    }
    View::new(data, shape, back).copy([0, 1, 2], |v| v)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every order and flip of a volume whose voxels say where they are.
    #[test]
    fn codes_say_which_axis_runs_along_each_direction() {
        assert_eq!(["RAS", "PSR", "ILP", "LIA"].map(axes), [[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 2, 1]]);
        assert_eq!(axes(""), [0, 1, 2]);
    }

    #[test]
    fn all_48_orientations_become_the_same_volume() {
        let shape = [19, 18, 5];
        let name = |x: usize, y: usize, z: usize| (x + 100 * y + 10_000 * z) as f32;
        let mut codes = std::collections::HashSet::new();
        for from in ORDERS {
            for flips in 0..8 {
                let flip = [0, 1, 2].map(|r| flips >> r & 1 == 1);
                let mut own = [0; 3];
                let mut affine = [[0.0; 4], [0.0; 4], [0.0; 4], [0.0, 0.0, 0.0, 1.0]];
                for r in 0..3 {
                    own[from[r]] = shape[r];
                    let size = r as f64 + 1.0;
                    affine[r][from[r]] = if flip[r] { -size } else { size };
                    affine[r][3] = if flip[r] { size * (shape[r] as f64 - 1.0) } else { 0.0 } - 7.0;
                }
                let mut data = Vec::new();
                for k in 0..own[2] {
                    for j in 0..own[1] {
                        for i in 0..own[0] {
                            let p = [0, 1, 2].map(|r| {
                                let p = [i, j, k][from[r]];
                                if flip[r] { shape[r] - 1 - p } else { p }
                            });
                            data.push(name(p[0], p[1], p[2]));
                        }
                    }
                }
                codes.insert(code(&affine));
                let ras = to_ras(Volume { shape: own, affine, data: data.clone() });
                assert_eq!(ras.shape, shape);
                assert_eq!(from_ras(&ras.data, shape, Axes::of(&affine)), data);
                assert_eq!(code(&ras.affine), "RAS");
                for (r, row) in ras.affine[..3].iter().enumerate() {
                    assert_eq!((row[r], row[3]), (r as f64 + 1.0, -7.0));
                }
                let expected =
                    (0..5).flat_map(|z| (0..18).flat_map(move |y| (0..19).map(move |x| name(x, y, z))));
                assert!(ras.data.iter().copied().eq(expected), "{from:?} {flip:?}");
            }
        }
        assert_eq!(codes.len(), 48);
    }
}
