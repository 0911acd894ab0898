//! Values between voxels, for maps that turn: linear along three axes at once.
use super::Volume;

/// The value at voxel coordinates `p`, where voxel (0, 0, 0) has its centre at 0: the eight voxels around it, weighted
/// linearly. Up to half a voxel beyond the outermost centres the outermost voxels reach; further out there is `None`.
#[inline(always)]
pub(super) fn value(volume: &Volume, p: [f64; 3]) -> Option<f32> {
    let shape = volume.shape;
    let strides = [1, shape[0], shape[0] * shape[1]];
    let (mut corner, mut step, mut part) = (0, [0; 3], [0.0_f32; 3]);
    for r in 0..3 {
        let last = (shape[r] - 1) as f64;
        if !(-0.5..=last + 0.5).contains(&p[r]) {
            return None;
        }
        let within = p[r].clamp(0.0, last);
        let below = (within as usize).min(shape[r].saturating_sub(2));
        corner += below * strides[r];
        // An axis of one voxel has no neighbour to weigh.
        step[r] = if shape[r] > 1 { strides[r] } else { 0 };
        part[r] = (within - below as f64) as f32;
    }
    let [sx, sy, sz] = step;
    let along_x = |i: usize| {
        let (a, b) = (volume.data[i], volume.data[i + sx]);
        a + part[0] * (b - a)
    };
    let along_y = |i: usize| {
        let (a, b) = (along_x(i), along_x(i + sy));
        a + part[1] * (b - a)
    };
    let (a, b) = (along_y(corner), along_y(corner + sz));
    Some(a + part[2] * (b - a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::affine::IDENTITY;

    #[test]
    fn ramps_are_exact_and_end_half_a_voxel_out() {
        let at = |p: [f64; 3]| 3.0 * p[0] - 2.0 * p[1] + 7.0 * p[2];
        let shape = [4, 3, 5];
        let place = |i: usize| [i % 4, i / 4 % 3, i / 12].map(|v| v as f64);
        let data = (0..60).map(|i| at(place(i)) as f32).collect();
        let volume = Volume { shape, affine: IDENTITY, data };
        for p in [[0.0; 3], [3.0, 2.0, 4.0], [1.25, 0.5, 3.75], [2.999, 1.0, 0.001]] {
            assert!((f64::from(value(&volume, p).unwrap()) - at(p)).abs() < 1e-5, "{p:?}");
        }
        assert_eq!(value(&volume, [-0.5, 2.5, 0.0]), value(&volume, [0.0, 2.0, 0.0]));
        assert_eq!(value(&volume, [3.6, 0.0, 0.0]), None);
        assert_eq!(value(&volume, [0.0, 0.0, f64::NAN]), None);
        let flat = Volume { shape: [1, 1, 1], affine: IDENTITY, data: vec![5.0] };
        assert_eq!(value(&flat, [0.3, -0.2, 0.0]), Some(5.0));
    }
}
