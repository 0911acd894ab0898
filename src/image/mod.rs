//! One volume at a time: reading and writing NIfTI, orientation, resampling, mask and intensity.

/// A 3-D image: voxels in `f32`, the first axis running fastest (as NIfTI stores them).
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    /// Voxels along each axis.
    pub shape: [usize; 3],
    /// Maps voxel indices (i, j, k, 1) to millimetres in RAS+ space (x to the right, y to the front, z up).
    pub affine: [[f64; 4]; 4],
    /// The voxels, `shape[0]` fastest.
    pub data: Vec<f32>,
}

impl Volume {
    /// Millimetres between voxels along each axis: the lengths of the affine's columns.
    pub fn spacing(&self) -> [f64; 3] {
        [0, 1, 2].map(|j| (0..3).map(|i| self.affine[i][j].powi(2)).sum::<f64>().sqrt())
    }
}
