//! Affine maps of a stored volume by trilinear interpolation over brain voxels alone: a voxel is brain where at least
//! half of the interpolation weight is, and its value is the mean of those by weight, so that edges carry neither
//! the dark halo of a background mixed in nor a bright one.
//!
//! Twice: [`interpolate`] is the definition, voxel by voxel; [`resample`] does the same arithmetic in the same order
//! on a copy with a margin, several times as fast. The kernel's arithmetic is that of both, so machines agree on
//! which voxels are brain.
use crate::image::BACKGROUND;
use crate::machine::{Real, scratch};
use half::{f16, slice::HalfFloatSliceExt};
use multiversion::multiversion;

/// Where voxel (x, y, z) of the result lies in the source, in voxels: row i is `a[i][..3] · (x, y, z) + a[i][3]`.
pub type Affine<F> = [[F; 4]; 3];

/// Every voxel where it is.
pub const IDENTITY: Affine<f32> = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]];

/// Left and right exchanged, of a volume of `nx` voxels along x.
pub fn mirror(nx: usize) -> Affine<f32> {
    let [_, y, z] = IDENTITY;
    [[-1.0, 0.0, 0.0, (nx - 1) as f32], y, z]
}

/// Where the first voxel of row (x, y) lies. It is counted from a voxel before the first of the source, so that what
/// is cut off to an integer is never negative.
#[inline(always)]
fn row_start<F: Real>(a: &Affine<F>, x: usize, y: usize) -> [F; 3] {
    let [x, y] = [x, y].map(|i| F::of(i as f64));
    a.map(|a| a[1].mul_add(y, a[0].mul_add(x, a[3])) + F::ONE)
}

/// Writes the voxels of `source` at the places of `affine` to `out`, [`BACKGROUND`] where they lie outside it.
pub(super) fn interpolate<F: Real>(source: &[f16], grid: [usize; 3], affine: &Affine<F>, out: &mut [F]) {
    let voxel = |at: [usize; 3]| -> F {
        let inside = (0..3).all(|i| (1..=grid[i]).contains(&at[i]));
        let index = || ((at[0] - 1) * grid[1] + at[1] - 1) * grid[2] + at[2] - 1;
        if inside { F::of(source[index()].to_f64()) } else { F::of(BACKGROUND.into()) }
    };
    for (row, line) in out.chunks_exact_mut(grid[2]).enumerate() {
        let start = row_start(affine, row / grid[1], row % grid[1]);
        for (z, value) in line.iter_mut().enumerate() {
            let p = [0, 1, 2].map(|i| affine[i][2].mul_add(F::of(z as f64), start[i]));
            let inside = (0..3).all(|i| p[i] >= F::ZERO && p[i] < F::of((grid[i] + 1) as f64));
            *value = if inside {
                let cell = p.map(|p| p.whole() as usize);
                let corners = [0, 1, 2, 3, 4, 5, 6, 7]
                    .map(|c| voxel([cell[0] + (c >> 2), cell[1] + (c >> 1 & 1), cell[2] + (c & 1)]));
                mean(corners, [0, 1, 2].map(|i| p[i] - F::of(cell[i] as f64)))
            } else {
                F::of(BACKGROUND.into())
            };
        }
    }
}

/// The value at `f` (0..1 along each axis) between eight corners, the last axis fastest.
#[inline(always)]
fn mean<F: Real>(corners: [F; 8], f: [F; 3]) -> F {
    let background = F::of(BACKGROUND.into());
    match corners.iter().filter(|&&c| c != background).count() {
        0 => background,
        8 => mean_of_all(corners, f),
        _ => mean_of_brain(corners, f),
    }
}

#[inline(always)]
fn mean_of_all<F: Real>(v: [F; 8], [fx, fy, fz]: [F; 3]) -> F {
    let mix = |a: F, b: F, f: F| (b - a).mul_add(f, a);
    let [near, far] = [0, 4].map(|x| mix(mix(v[x], v[x + 1], fz), mix(v[x + 2], v[x + 3], fz), fy));
    mix(near, far, fx)
}

#[inline(always)]
fn mean_of_brain<F: Real>(corners: [F; 8], f: [F; 3]) -> F {
    let background = F::of(BACKGROUND.into());
    let sides = f.map(|f| [F::ONE - f, f]);
    let (mut sum, mut weight) = (F::ZERO, F::ZERO);
    for (c, &corner) in corners.iter().enumerate() {
        let brain = corner != background;
        let (xy, z) = (sides[0][c >> 2] * sides[1][c >> 1 & 1], sides[2][c & 1]);
        let (corner, z) = if brain { (corner, z) } else { (F::ZERO, F::ZERO) };
        sum = (xy * z).mul_add(corner, sum);
        weight = xy.mul_add(z, weight);
    }
    if weight < F::of(0.5) { background } else { sum / weight }
}

/// What [`interpolate`] writes, fast.
pub(super) fn resample(source: &[f16], grid: [usize; 3], affine: &Affine<f32>, out: &mut [f32]) {
    for (map, mirrored) in [(IDENTITY, false), (mirror(grid[0]), true)] {
        if *affine == map {
            return copy(source, grid, mirrored, out);
        }
    }
    let padded = grid.map(|n| n + 2).iter().product::<usize>();
    scratch::<f32, _>(padded + padded.div_ceil(4) + 4 * grid[2], |space| {
        let (values, space) = space.split_at_mut(padded);
        let (brain, row) = space.split_at_mut(padded.div_ceil(4));
        let padded = Padded::new(source, grid, values, &mut bytemuck::cast_slice_mut(brain)[..padded]);
        resample_padded(&padded, grid, affine, row, out);
    });
}

fn copy(source: &[f16], grid: [usize; 3], mirrored: bool, out: &mut [f32]) {
    let slab = grid[1] * grid[2];
    for (x, out) in out.chunks_exact_mut(slab).enumerate() {
        let from = if mirrored { grid[0] - 1 - x } else { x };
        source[from * slab..][..slab].convert_to_f32_slice(out);
    }
}

/// The source in `f32` with one voxel of background on every side, and how many of the eight voxels
/// (i..=i+1, j..=j+1, k..=k+1) are brain: none and all are the common and fast cases.
struct Padded<'a> {
    values: &'a [f32],
    brain: &'a [u8],
    /// Distance between neighbours along x and along y.
    stride: [usize; 2],
}

impl<'a> Padded<'a> {
    fn new(source: &[f16], [_, ny, nz]: [usize; 3], values: &'a mut [f32], brain: &'a mut [u8]) -> Self {
        let [sx, sy] = [(ny + 2) * (nz + 2), nz + 2];
        let (margins, slabs) = (values.len() - sx, source.chunks_exact(ny * nz));
        values[..sx].fill(BACKGROUND);
        values[margins..].fill(BACKGROUND);
        for (slab, from) in values[sx..].chunks_exact_mut(sx).zip(slabs) {
            slab[..sy].fill(BACKGROUND);
            slab[sx - sy..].fill(BACKGROUND);
            for (row, from) in slab[sy..].chunks_exact_mut(sy).zip(from.chunks_exact(nz)) {
                (row[0], row[nz + 1]) = (BACKGROUND, BACKGROUND);
                from.convert_to_f32_slice(&mut row[1..=nz]);
            }
        }
        count_brain(values, brain, [sx, sy]);
        Padded { values, brain, stride: [sx, sy] }
    }

    /// The value at padded voxel `i` plus `f` (0..1 along each axis).
    #[inline(always)]
    fn at(&self, i: usize, f: [f32; 3]) -> f32 {
        let brain = self.brain[i];
        if brain == 0 {
            return BACKGROUND;
        }
        let [sx, sy] = self.stride;
        let [a, b, c, d] = [i, i + sy, i + sx, i + sx + sy].map(|i| [self.values[i], self.values[i + 1]]);
        let corners = [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]];
        if brain == 8 { mean_of_all(corners, f) } else { mean_of_brain(corners, f) }
    }
}

/// Counts along z, then y, then x. What is past the last voxel that has all its neighbours is of no use.
#[multiversion(targets = "simd")]
fn count_brain(values: &[f32], brain: &mut [u8], [sx, sy]: [usize; 2]) {
    for (count, pair) in brain.iter_mut().zip(values.windows(2)) {
        *count = u8::from(pair[0] != BACKGROUND) + u8::from(pair[1] != BACKGROUND);
    }
    brain[values.len() - 1] = 0;
    for step in [sy, sx] {
        let mut rest = &mut *brain;
        // Blocks of `step`: each is added to by the next, which is still as it was.
        while rest.len() >= 2 * step {
            let (block, after) = rest.split_at_mut(step);
            block.iter_mut().zip(&*after).for_each(|(count, next)| *count += next);
            rest = after;
        }
    }
}

/// `row` is working space for four numbers a voxel of a row.
#[multiversion(targets = "simd")]
fn resample_padded(
    source: &Padded,
    grid: [usize; 3],
    affine: &Affine<f32>,
    row: &mut [f32],
    out: &mut [f32],
) {
    let step = affine.map(|a| a[2]);
    let strides = [source.stride[0] as i32, source.stride[1] as i32, 1];
    // Places of one row, apart from the reading of voxels so that the compiler can vectorise the arithmetic.
    let (cells, fractions) = row.split_at_mut(grid[2]);
    let cells: &mut [i32] = bytemuck::cast_slice_mut(cells);
    for (row, line) in out.chunks_exact_mut(grid[2]).enumerate() {
        let start = row_start(affine, row / grid[1], row % grid[1]);
        let [from, to] = inside(start, step, grid);
        line[..from].fill(BACKGROUND);
        line[to..].fill(BACKGROUND);
        cells.fill(0);
        for (i, fractions) in fractions.chunks_exact_mut(grid[2]).enumerate() {
            // The bounds of `inside` are sharp only up to rounding.
            let last = grid[i] as f32 + 0.999;
            for (z, (cell, fraction)) in cells.iter_mut().zip(fractions).enumerate() {
                let p = step[i].mul_add(z as i32 as f32, start[i]).clamp(0.0, last);
                let whole = p as i32;
                *fraction = p - whole as f32;
                *cell += whole * strides[i];
            }
        }
        let [fx, fy, fz] = [0, 1, 2].map(|i| &fractions[i * grid[2]..][from..to]);
        let places = cells[from..to].iter().zip(fx).zip(fy.iter().zip(fz));
        for (value, ((&cell, &fx), (&fy, &fz))) in line[from..to].iter_mut().zip(places) {
            *value = source.at(cell as usize, [fx, fy, fz]);
        }
    }
}

/// The range of z for which `start` + z `step` lies in the padded source, 0 to n + 1 along each axis.
fn inside(start: [f32; 3], step: [f32; 3], grid: [usize; 3]) -> [usize; 2] {
    let (mut from, mut to) = (0.0f32, grid[2] as f32);
    for i in 0..3 {
        let ends = [-start[i], (grid[i] + 1) as f32 - start[i]];
        if step[i].abs() < 1e-6 {
            if ends[0] > 0.0 || ends[1] <= 0.0 {
                return [0, 0];
            }
        } else {
            let [a, b] = ends.map(|e| e / step[i]);
            from = from.max(a.min(b));
            to = to.min(a.max(b));
        }
    }
    let from = from.ceil() as usize;
    [from.min(grid[2]), (to.ceil().max(0.0) as usize).clamp(from.min(grid[2]), grid[2])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::philox::{Philox, Purpose};

    const GRID: [usize; 3] = [9, 12, 7];

    /// Brain with holes in it, and a voxel that is no number.
    fn volume() -> Vec<f16> {
        let mut r = Philox::new(1, Purpose::Test, 0, 0);
        let mut voxel = |i| match (i, r.uniform() < 0.8) {
            (300, _) => f16::NAN,
            (_, true) => f16::from_f32(r.normal().clamp(-3.9, 3.9)),
            (_, false) => f16::from_f32(BACKGROUND),
        };
        (0..GRID.iter().product()).map(&mut voxel).collect()
    }

    #[test]
    fn the_fast_way_has_the_bits_of_the_definition() {
        let mut r = Philox::new(2, Purpose::Test, 0, 0);
        for n in 0..50 {
            // From gentle maps to such that lead far outside.
            let spread = 0.02 * n as f32;
            let mut map = if n % 2 == 0 { IDENTITY } else { mirror(GRID[0]) };
            map.as_flattened_mut().iter_mut().for_each(|a| *a += spread * r.normal());
            let (mut defined, mut fast) = (vec![0.0; volume().len()], vec![0.0; volume().len()]);
            interpolate(&volume(), GRID, &map, &mut defined);
            resample(&volume(), GRID, &map, &mut fast);
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            // Copied volumes do not spread what is no number to its neighbours.
            assert!(n < 2 || defined.iter().zip(&fast).all(same), "map {n}");
        }
    }

    #[test]
    fn whole_voxel_shifts_move_voxels() {
        let (volume, mut out) = (volume(), vec![0.0; GRID.iter().product()]);
        let mut map = IDENTITY;
        (map[0][3], map[1][3], map[2][3]) = (2.0, -3.0, 1.0);
        resample(&volume, GRID, &map, &mut out);
        let at = |x: usize, y: usize, z: usize| (x * GRID[1] + y) * GRID[2] + z;
        for (x, y, z) in [(0, 3, 0), (1, 7, 2), (6, 11, 5)] {
            assert_eq!(out[at(x, y, z)], volume[at(x + 2, y - 3, z + 1)].to_f32());
        }
        assert_eq!([out[at(8, 5, 3)], out[at(4, 2, 3)], out[at(4, 5, 6)]], [BACKGROUND; 3]);
    }
}
