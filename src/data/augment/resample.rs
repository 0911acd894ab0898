//! Affine maps of a prepared volume, by trilinear interpolation over brain voxels alone.
use super::Augment;
use crate::{image::BACKGROUND, machine::philox::Philox};
use half::{f16, slice::HalfFloatSliceExt};

/// Where the voxels of the result lie in the source: `origin` + `matrix` · voxel, in source voxels.
pub(super) struct Placement {
    pub matrix: [[f32; 3]; 3],
    pub origin: [f32; 3],
}

impl Placement {
    /// Nothing if the map could only be the identity.
    pub(super) fn draw(
        grid: [usize; 3],
        spacing: f32,
        how: &Augment,
        mirror: bool,
        r: &mut Philox,
    ) -> Option<Placement> {
        let turns = [0; 3].map(|_| r.between(-how.rotate_deg, how.rotate_deg).to_radians());
        let size = 1.0 + r.between(-how.scale, how.scale);
        let sizes = [0; 3].map(|_| size * (1.0 + r.between(-how.stretch, how.stretch)));
        let shift = [0; 3].map(|_| r.between(-how.translate_mm, how.translate_mm) / spacing);
        if [how.rotate_deg, how.scale, how.stretch, how.translate_mm] == [0.0; 4] {
            return None;
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
            if mirror {
                row[0] = -row[0];
            }
        }
        let centre = grid.map(|n| 0.5 * (n - 1) as f32);
        let turned = matrix.map(|row| row[0] * centre[0] + row[1] * centre[1] + row[2] * centre[2]);
        Some(Placement { matrix, origin: [0, 1, 2].map(|i| centre[i] + shift[i] - turned[i]) })
    }
}

/// The source in `f32` with one voxel of background on every side, and how many of the eight voxels
/// (i..=i+1, j..=j+1, k..=k+1) are brain: none and all are the common and fast cases.
pub(super) struct Padded {
    values: Vec<f32>,
    brain: Vec<u8>,
    /// Distance in `values` between neighbours along x and along y.
    stride: [usize; 2],
}

impl Padded {
    pub(super) fn new(volume: &[f16], grid: [usize; 3]) -> Padded {
        let [nx, ny, nz] = grid;
        let stride = [(ny + 2) * (nz + 2), nz + 2];
        let mut values = vec![BACKGROUND; (nx + 2) * stride[0]];
        for (row, from) in volume.chunks_exact(nz).enumerate() {
            let at = (row / ny + 1) * stride[0] + (row % ny + 1) * stride[1] + 1;
            from.convert_to_f32_slice(&mut values[at..at + nz]);
        }
        let mut brain: Vec<u8> = values.iter().map(|&v| u8::from(v != BACKGROUND)).collect();
        for step in [1, stride[1], stride[0]] {
            brain = brain.iter().zip(&brain[step..]).map(|(a, b)| a + b).collect();
        }
        Padded { values, brain, stride }
    }

    /// The value at padded voxel `i` plus `f` (0..1 along each axis) by trilinear interpolation over brain voxels.
    #[inline(always)]
    fn at(&self, i: usize, f: [f32; 3]) -> f32 {
        let brain = self.brain[i];
        if brain == 0 {
            return BACKGROUND;
        }
        let [sx, sy] = self.stride;
        let v = &self.values[i..i + sx + sy + 2];
        if brain == 8 {
            let mix = |a: f32, b: f32, t: f32| a + (b - a) * t;
            let (low, high) = (mix(v[0], v[1], f[2]), mix(v[sy], v[sy + 1], f[2]));
            let near = mix(low, high, f[1]);
            let (low, high) = (mix(v[sx], v[sx + 1], f[2]), mix(v[sx + sy], v[sx + sy + 1], f[2]));
            return mix(near, mix(low, high, f[1]), f[0]);
        }
        let corners = [v[0], v[1], v[sy], v[sy + 1], v[sx], v[sx + 1], v[sx + sy], v[sx + sy + 1]];
        let (mut sum, mut weight) = (0.0, 0.0);
        for (c, &corner) in corners.iter().enumerate() {
            let side = |axis: usize, bit: usize| if c & bit == 0 { 1.0 - f[axis] } else { f[axis] };
            let w = side(0, 4) * side(1, 2) * side(2, 1);
            if corner != BACKGROUND {
                sum += w * corner;
                weight += w;
            }
        }
        if weight < 0.5 { BACKGROUND } else { sum / weight }
    }
}

/// Writes the voxels of `source` at the places of `placement` to `out`, [`BACKGROUND`] where they lie outside it.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq+fma", "x86_64+avx2+fma"))]
pub(super) fn resample(source: &Padded, grid: [usize; 3], placement: &Placement, out: &mut [f32]) {
    let Placement { matrix, origin } = placement;
    let step = matrix.map(|row| row[2]);
    let strides = [source.stride[0] as i32, source.stride[1] as i32, 1];
    // Places of one row, apart from the reading of voxels so that the compiler can vectorise the arithmetic.
    let mut cells = vec![0i32; grid[2]];
    let mut fractions = [0; 3].map(|_| vec![0f32; grid[2]]);
    for (row, line) in out.chunks_exact_mut(grid[2]).enumerate() {
        let (x, y) = ((row / grid[1]) as f32, (row % grid[1]) as f32);
        // Coordinates count from the padding's first voxel.
        let start = [0, 1, 2].map(|i| origin[i] + matrix[i][0] * x + matrix[i][1] * y + 1.0);
        let [from, to] = inside(start, step, grid);
        line[..from].fill(BACKGROUND);
        line[to..].fill(BACKGROUND);
        cells.fill(0);
        for i in 0..3 {
            // The bounds of `inside` are sharp only up to rounding.
            let last = grid[i] as f32 + 0.999;
            for (k, (cell, fraction)) in cells.iter_mut().zip(&mut fractions[i]).enumerate() {
                let p = (start[i] + step[i] * k as i32 as f32).clamp(0.0, last);
                let whole = p as i32;
                *fraction = p - whole as f32;
                *cell += whole * strides[i];
            }
        }
        let [fx, fy, fz] = &fractions;
        let places = cells[from..to].iter().zip(&fx[from..to]).zip(fy[from..to].iter().zip(&fz[from..to]));
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
