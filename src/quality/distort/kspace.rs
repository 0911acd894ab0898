//! Distortions of k-space. The image is a magnitude: the spectrum of what the scanner saw is not known, so that of the
//! image stands for it, and what comes back is a magnitude again. That is an approximation, and for a stripped scan,
//! whose scalp is not there to make ghosts, a coarser one.
//!
//! What depends on frequencies along one axis alone needs transforms along that axis alone: those along the other two
//! would be undone as they were done.
use super::{
    canvas::Canvas,
    draw::{Pose, Spike},
};
use rustfft::{Fft, FftPlanner, num_complex::Complex32};
use std::{f64::consts::TAU, sync::Arc};

/// Transforms of lines of one length.
struct Spectra {
    n: usize,
    forward: Arc<dyn Fft<f32>>,
    backward: Arc<dyn Fft<f32>>,
}

/// What one thread transforms in.
struct Buffers {
    line: Vec<f32>,
    moved: Vec<Complex32>,
    mixed: Vec<Complex32>,
    work: Vec<Complex32>,
}

impl Spectra {
    fn new(n: usize) -> Spectra {
        let mut planner = FftPlanner::new();
        Spectra { n, forward: planner.plan_fft_forward(n), backward: planner.plan_fft_inverse(n) }
    }
    fn buffers(&self) -> Buffers {
        let work =
            self.forward.get_inplace_scratch_len().max(self.backward.get_inplace_scratch_len()).max(self.n);
        let zeros = |n| vec![Complex32::ZERO; n];
        Buffers { line: vec![0.0; self.n], moved: zeros(self.n), mixed: zeros(self.n), work: zeros(work) }
    }
    /// Cycles along the line of entry `k` of a spectrum, from -n/2 up.
    fn cycles(&self, k: usize) -> isize {
        let k = k as isize;
        if k <= (self.n as isize - 1) / 2 { k } else { k - self.n as isize }
    }
    fn forward(&self, line: &[f32], spectrum: &mut [Complex32], work: &mut [Complex32]) {
        spectrum.iter_mut().zip(line).for_each(|(s, &v)| *s = Complex32::new(v, 0.0));
        self.forward.process_with_scratch(spectrum, work);
    }
    /// The magnitude of what `spectrum` shows.
    fn backward(&self, spectrum: &mut [Complex32], line: &mut [f32], work: &mut [Complex32]) {
        self.backward.process_with_scratch(spectrum, work);
        let scale = 1.0 / self.n as f32;
        line.iter_mut().zip(spectrum).for_each(|(v, s)| *v = s.norm() * scale);
    }
}

/// Multiplies the spectrum along `axis` by `weight`, a function of its cycles along the field of view.
fn filter(canvas: &mut Canvas, axis: usize, weight: impl Fn(isize) -> f32) {
    let spectra = Spectra::new(canvas.shape[axis]);
    let weights: Vec<f32> = (0..spectra.n).map(|k| weight(spectra.cycles(k))).collect();
    canvas.lines(
        axis,
        || spectra.buffers(),
        |b, _, line| {
            spectra.forward(line, &mut b.mixed, &mut b.work);
            b.mixed.iter_mut().zip(&weights).for_each(|(s, &w)| *s *= w);
            spectra.backward(&mut b.mixed, line, &mut b.work);
        },
    );
}

/// Every `ghosts`-th plane of k-space loses `intensity` of itself, but for the share `restore` around the centre: the
/// head less copies of it, each `intensity / ghosts` of it, a `ghosts`-th part of the field of view apart.
pub(super) fn ghosting(canvas: &mut Canvas, axis: usize, intensity: f64, ghosts: u32, restore: f64) {
    let restored = restore * canvas.shape[axis] as f64 / 2.0;
    filter(canvas, axis, |cycles| {
        let central = restore > 0.0 && cycles.unsigned_abs() as f64 <= restored;
        if cycles % ghosts as isize == 0 && !central { (1.0 - intensity) as f32 } else { 1.0 }
    });
}

/// k-space ends at the frequency that a resolution of `mm` has: half a cycle in it.
pub(super) fn gibbs(canvas: &mut Canvas, axis: usize, mm: f64) {
    let end = canvas.shape[axis] as f64 * canvas.spacing[axis] / (2.0 * mm);
    if end < canvas.shape[axis] as f64 / 2.0 {
        filter(canvas, axis, |cycles| if cycles.unsigned_abs() as f64 > end { 0.0 } else { 1.0 });
    }
}

/// Adds a plane wave for each spike, of `intensity` times the spectrum's greatest sample; of an image that has no
/// negative voxels that is the one of its mean.
pub(super) fn spikes(canvas: &mut Canvas, spikes: &[Spike]) {
    let mean = canvas.data.iter().map(|&v| f64::from(v)).sum::<f64>() / canvas.data.len() as f64;
    let shape = canvas.shape;
    // A sample of the scan's own k-space: a whole number of cycles in the field of view.
    let waves: Vec<(f64, [f64; 3], f64)> = spikes
        .iter()
        .map(|spike| {
            let step = [0, 1, 2].map(|a| {
                let (n, mm) = (shape[a] as f64, canvas.spacing[a]);
                let most = ((shape[a] - 1) / 2) as f64;
                TAU * (spike.cycles_per_mm[a] * n * mm).round().clamp(-most, most) / n
            });
            (spike.intensity * mean, step, spike.phase)
        })
        .collect();
    canvas.each_plane(|z, plane| {
        for (y, row) in plane.chunks_mut(shape[0]).enumerate() {
            for (x, v) in row.iter_mut().enumerate() {
                let (mut real, mut imaginary) = (f64::from(*v), 0.0);
                for (amplitude, step, phase) in &waves {
                    let (sin, cos) =
                        (phase + step[0] * x as f64 + step[1] * y as f64 + step[2] * z as f64).sin_cos();
                    real += amplitude * cos;
                    imaginary += amplitude * sin;
                }
                *v = real.hypot(imaginary) as f32;
            }
        }
    });
}

/// A rigid motion, from voxels of the image to the places they come from.
struct Origins {
    /// For voxel (0, 0, 0).
    first: [f64; 3],
    /// Per voxel along each axis.
    step: [[f64; 3]; 3],
}

impl Origins {
    fn new(canvas: &Canvas, pose: &Pose) -> Origins {
        let turn = rotation(pose.rotation_degrees.map(f64::to_radians));
        let centre =
            [0, 1, 2].map(|a| ((canvas.head[a][0] + canvas.head[a][1]) / 2.0 - 0.5) * canvas.spacing[a]);
        // Back: the shift first, then the rotation's transpose.
        let back = |v: [f64; 3], a: usize| (0..3).map(|b| turn[b][a] * v[b]).sum::<f64>();
        let from = [0, 1, 2].map(|a| -centre[a] - pose.translation_mm[a]);
        let first = [0, 1, 2].map(|a| (back(from, a) + centre[a]) / canvas.spacing[a]);
        let step = [0, 1, 2]
            .map(|along| [0, 1, 2].map(|a| turn[along][a] * canvas.spacing[along] / canvas.spacing[a]));
        Origins { first, step }
    }
}

/// The rotation by `v`'s length about its direction (Rodrigues).
fn rotation(v: [f64; 3]) -> [[f64; 3]; 3] {
    let angle = v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let [x, y, z] = if angle > 0.0 { v.map(|x| x / angle) } else { [0.0; 3] };
    let (s, c) = angle.sin_cos();
    let t = 1.0 - c;
    [
        [t * x * x + c, t * x * y - s * z, t * x * z + s * y],
        [t * x * y + s * z, t * y * y + c, t * y * z - s * x],
        [t * x * z - s * y, t * y * z + s * x, t * z * z + c],
    ]
}

/// Weights of the four voxels around a place `t` after the second (Catmull and Rom): smooth, and a voxel's own value
/// where the place is one.
fn cubic(t: f32) -> [f32; 4] {
    let (t2, t3) = (t * t, t * t * t);
    [-0.5 * t3 + t2 - 0.5 * t, 1.5 * t3 - 2.5 * t2 + 1.0, -1.5 * t3 + 2.0 * t2 + 0.5 * t, 0.5 * t3 - 0.5 * t2]
}

/// The value of `data` at `place`; beyond the faces the last voxels go on, as a neck does.
fn sample(data: &[f32], shape: [usize; 3], place: [f64; 3]) -> f32 {
    let floor = place.map(f64::floor);
    let [wx, wy, wz] = [0, 1, 2].map(|a| cubic((place[a] - floor[a]) as f32));
    let base = floor.map(|f| f as isize - 1);
    let index = |a: usize, i: usize| (base[a] + i as isize).clamp(0, shape[a] as isize - 1) as usize;
    let [nx, ny, _] = shape;
    let inside = (0..3).all(|a| base[a] >= 0 && base[a] + 4 <= shape[a] as isize);
    let mut sum = 0.0;
    for (k, wz) in wz.into_iter().enumerate() {
        for (j, wy) in wy.into_iter().enumerate() {
            let row = (index(2, k) * ny + index(1, j)) * nx;
            let four = if inside {
                let from = row + base[0] as usize;
                [data[from], data[from + 1], data[from + 2], data[from + 3]]
            } else {
                [0, 1, 2, 3].map(|i| data[row + index(0, i)])
            };
            sum += wz * wy * (wx[0] * four[0] + wx[1] * four[1] + wx[2] * four[2] + wx[3] * four[3]);
        }
    }
    sum
}

/// k-space along `axis` is acquired plane after plane, from one end to the other, while the head goes through `poses`.
pub(super) fn motion(canvas: &mut Canvas, axis: usize, poses: &[Pose]) {
    let spectra = Spectra::new(canvas.shape[axis]);
    let n = spectra.n as f64;
    // Each plane of k-space belongs to the pose in which it is acquired.
    let pose_of: Vec<usize> = (0..spectra.n)
        .map(|k| {
            let acquired = (spectra.cycles(k) as f64 + (spectra.n / 2) as f64 + 0.5) / n;
            poses.iter().position(|pose| acquired < pose.until).unwrap_or(poses.len() - 1)
        })
        .collect();
    let is_still = |pose: &Pose| pose.rotation_degrees == [0.0; 3] && pose.translation_mm == [0.0; 3];
    let origins: Vec<Option<Origins>> =
        poses.iter().map(|pose| (!is_still(pose)).then(|| Origins::new(canvas, pose))).collect();
    if origins.iter().all(Option::is_none) {
        return;
    }
    let (still, shape) = (canvas.data.clone(), canvas.shape);
    canvas.lines(
        axis,
        || spectra.buffers(),
        |b, first, line| {
            for (number, origins) in origins.iter().enumerate() {
                match origins {
                    None => b.line.copy_from_slice(line),
                    Some(Origins { first: zero, step }) => {
                        let start = [0, 1, 2].map(|a| {
                            zero[a] + (0..3).map(|along| step[along][a] * first[along] as f64).sum::<f64>()
                        });
                        for (i, v) in b.line.iter_mut().enumerate() {
                            let place = [0, 1, 2].map(|a| start[a] + step[axis][a] * i as f64);
                            *v = sample(&still, shape, place);
                        }
                    }
                }
                spectra.forward(&b.line, &mut b.moved, &mut b.work);
                for ((to, from), owner) in b.mixed.iter_mut().zip(&b.moved).zip(&pose_of) {
                    if *owner == number {
                        *to = *from;
                    }
                }
            }
            spectra.backward(&mut b.mixed, line, &mut b.work);
        },
    );
}
