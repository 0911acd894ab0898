//! A scan while it is distorted: seen as RAS, so that what is done depends on millimetres in the head and not on how
//! the file orders its axes.
use super::Error;
use crate::image::{self, Volume, orientation::to_ras};
use rayon::prelude::*;
use std::ops::Range;

pub(super) struct Canvas {
    pub(super) shape: [usize; 3],
    /// Millimetres between voxels.
    pub(super) spacing: [f64; 3],
    /// x fastest; from 0 up.
    pub(super) data: Vec<f32>,
    /// Lower and upper edge of the head along each axis, in voxels.
    pub(super) head: [[f64; 2]; 3],
    /// The brightness of bright tissue.
    pub(super) bright: f32,
    /// The part of the scan's grid that is left.
    pub(super) kept: [Range<usize>; 3],
    /// What was taken from all voxels to have them start at 0.
    least: f32,
    /// Of a skull-stripped scan: the background's value, and where it is.
    background: Option<(f32, Vec<bool>)>,
}

/// Planes that are transposed together: 16 floats are a cache line.
const BLOCK: usize = 16;

impl Canvas {
    /// # Errors
    /// Voxels that are not finite, or all the same.
    pub(super) fn new(volume: Volume) -> Result<Canvas, Error> {
        let total = volume.data.len();
        let count = volume.data.iter().filter(|v| !v.is_finite()).count();
        if count > 0 {
            return Err(image::Error::NotFinite { count, total }.into());
        }
        let volume = to_ras(volume);
        let head = image::head_extent(&volume)?;
        let background = image::background(&volume)
            .map(|value| (value, volume.data.iter().map(|&v| v == value).collect()));
        // Magnitudes have no sign: images that do, such as z-scores, are lifted and lowered again at the end.
        let least = volume.data.iter().copied().fold(0.0, f32::min);
        let mut canvas = Canvas {
            shape: volume.shape,
            spacing: volume.spacing(),
            data: volume.data,
            head,
            bright: 0.0,
            kept: volume.shape.map(|n| 0..n),
            least,
            background,
        };
        canvas.data.par_iter_mut().for_each(|v| *v -= least);
        canvas.bright = canvas.bright_tissue();
        Ok(canvas)
    }

    /// The 99th percentile in the head's box: a few vessels and coil elements must not decide.
    fn bright_tissue(&self) -> f32 {
        let [nx, ny, _] = self.shape;
        let [x, y, z] = [0, 1, 2].map(|axis| self.planes(axis, self.head[axis]));
        let rows = z.flat_map(|z| y.clone().map(move |y| (z * ny + y) * nx));
        let mut inside: Vec<f32> =
            rows.flat_map(|row| &self.data[row + x.start..row + x.end]).copied().collect();
        let at = inside.len() * 99 / 100;
        *inside.select_nth_unstable_by(at, f32::total_cmp).1
    }

    /// The planes whose centres lie between two edges; at least one.
    pub(super) fn planes(&self, axis: usize, [low, high]: [f64; 2]) -> Range<usize> {
        let n = self.shape[axis];
        let centre = |edge: f64| ((edge - 0.5).ceil().max(0.0) as usize).min(n);
        let from = centre(low).min(n - 1);
        from..centre(high).max(from + 1)
    }

    /// Where a voxel's centre lies on the head: -1 at its lower edge, 1 at the upper one, and no further.
    pub(super) fn on_head(&self, axis: usize, voxel: usize) -> f64 {
        let [low, high] = self.head[axis];
        ((voxel as f64 + 0.5 - low) / (high - low) * 2.0 - 1.0).clamp(-1.0, 1.0)
    }

    /// Millimetres the head measures along `axis`.
    pub(super) fn extent(&self, axis: usize) -> f64 {
        (self.head[axis][1] - self.head[axis][0]) * self.spacing[axis]
    }

    /// Gives each line of voxels along `axis` to `work`, with the place of its first voxel; in parallel, each thread
    /// with a `scratch` of its own.
    pub(super) fn lines<S>(
        &mut self,
        axis: usize,
        scratch: impl Fn() -> S + Sync + Send,
        work: impl Fn(&mut S, [usize; 3], &mut [f32]) + Sync + Send,
    ) {
        let [nx, ny, nz] = self.shape;
        let n = self.shape[axis];
        if axis == 0 {
            self.data.par_chunks_mut(n).enumerate().for_each_init(scratch, |scratch, (i, line)| {
                work(scratch, [0, i % ny, i / ny], line);
            });
            return;
        }
        // Lines side by side, those with the same third coordinate together: a slab each.
        let other = 3 - axis;
        let stride = |a: usize| if a == 1 { nx } else { nx * ny };
        let (along, across) = (stride(axis), stride(other));
        let mut lines = vec![0.0; self.data.len()];
        lines.par_chunks_mut(nx * n).enumerate().for_each_init(scratch, |scratch, (o, slab)| {
            for block in (0..n).step_by(BLOCK) {
                for x in 0..nx {
                    for i in block..(block + BLOCK).min(n) {
                        slab[x * n + i] = self.data[o * across + i * along + x];
                    }
                }
            }
            for (x, line) in slab.chunks_mut(n).enumerate() {
                let mut first = [x, 0, 0];
                first[other] = o;
                work(scratch, first, line);
            }
        });
        if axis == 1 {
            self.data.par_chunks_mut(nx * ny).zip(lines.par_chunks(nx * ny)).for_each(|(plane, slab)| {
                for (i, row) in plane.chunks_mut(nx).enumerate() {
                    row.iter_mut().enumerate().for_each(|(x, v)| *v = slab[x * ny + i]);
                }
            });
        } else {
            self.data.par_chunks_mut(nx * ny * BLOCK).enumerate().for_each(|(block, planes)| {
                let depth = planes.len() / (nx * ny);
                for column in 0..nx * ny {
                    let from = column * nz + block * BLOCK;
                    // Lines are ordered as columns of voxels are: x first, then y.
                    for (i, &v) in lines[from..from + depth].iter().enumerate() {
                        planes[i * nx * ny + column] = v;
                    }
                }
            });
        }
    }

    /// Gives each plane across z to `work`, in parallel.
    pub(super) fn each_plane(&mut self, work: impl Fn(usize, &mut [f32]) + Sync + Send) {
        let plane = self.shape[0] * self.shape[1];
        self.data.par_chunks_mut(plane).enumerate().for_each(|(z, plane)| work(z, plane));
    }

    /// Keeps the planes `range` of `axis`.
    pub(super) fn crop(&mut self, axis: usize, range: Range<usize>) {
        let mut ranges = self.shape.map(|n| 0..n);
        ranges[axis] = range.clone();
        self.data = cropped(&self.data, self.shape, &ranges);
        if let Some((_, outside)) = &mut self.background {
            *outside = cropped(outside, self.shape, &ranges);
        }
        self.shape[axis] = range.len();
        self.head[axis] = self.head[axis].map(|e| (e - range.start as f64).clamp(0.0, range.len() as f64));
        let start = self.kept[axis].start + range.start;
        self.kept[axis] = start..start + range.len();
    }

    /// The voxels, x fastest, in the scan's own intensities.
    pub(super) fn finish(mut self) -> Vec<f32> {
        let least = self.least;
        self.data.par_iter_mut().for_each(|v| *v += least);
        if let Some((value, outside)) = &self.background {
            // A stripped scan stays stripped, as it would be had it been stripped after it was distorted.
            self.data.iter_mut().zip(outside).filter(|(_, outside)| **outside).for_each(|(v, _)| *v = *value);
        }
        self.data
    }
}

/// The part of a grid, its first axis fastest, within three ranges.
pub(super) fn cropped<T: Copy>(data: &[T], shape: [usize; 3], ranges: &[Range<usize>; 3]) -> Vec<T> {
    let [x, y, z] = ranges;
    let rows = z.clone().flat_map(|k| y.clone().map(move |j| (k * shape[1] + j) * shape[0]));
    rows.flat_map(|row| &data[row + x.start..row + x.end]).copied().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A canvas of `value` whose head fills it.
    pub(in super::super) fn canvas(
        shape: [usize; 3],
        spacing: [f64; 3],
        value: impl Fn([usize; 3]) -> f32,
    ) -> Canvas {
        let [nx, ny, nz] = shape;
        let places = (0..nz).flat_map(|z| (0..ny).flat_map(move |y| (0..nx).map(move |x| [x, y, z])));
        Canvas {
            shape,
            spacing,
            data: places.map(value).collect(),
            head: shape.map(|n| [0.0, n as f64]),
            bright: 1.0,
            kept: shape.map(|n| 0..n),
            least: 0.0,
            background: None,
        }
    }

    pub(in super::super) fn at(canvas: &Canvas, [x, y, z]: [usize; 3]) -> f32 {
        canvas.data[(z * canvas.shape[1] + y) * canvas.shape[0] + x]
    }

    #[test]
    fn lines_run_along_their_axis_and_know_where_they_begin() {
        let shape = [5, 33, 18];
        let name = |p: [usize; 3]| (p[0] + 100 * p[1] + 10_000 * p[2]) as f32;
        for axis in 0..3 {
            let mut c = canvas(shape, [1.0; 3], name);
            c.lines(
                axis,
                || (),
                |(), first, line| {
                    assert_eq!((first[axis], line.len()), (0, shape[axis]));
                    for (i, v) in line.iter_mut().enumerate() {
                        let mut place = first;
                        place[axis] = i;
                        assert_eq!(*v, name(place));
                        *v += 0.5;
                    }
                },
            );
            assert_eq!(c.data, canvas(shape, [1.0; 3], |p| name(p) + 0.5).data);
        }
    }

    #[test]
    fn a_crop_keeps_voxels_and_the_head_where_they_are() {
        let name = |p: [usize; 3]| (p[0] + 10 * p[1] + 100 * p[2]) as f32;
        let mut c = canvas([6, 5, 4], [1.0; 3], name);
        c.head[1] = [0.5, 4.0];
        c.crop(1, 1..5);
        c.crop(1, 0..3);
        assert_eq!((c.shape, c.kept[1].clone(), c.head[1]), ([6, 3, 4], 1..4, [0.0, 3.0]));
        assert_eq!(at(&c, [2, 0, 3]), 312.0);
        assert_eq!(at(&c, [5, 2, 0]), 35.0);
    }
}
