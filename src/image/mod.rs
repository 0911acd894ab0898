//! One volume at a time: reading and writing NIfTI (`nifti`, `header`, `gzip`, `write`), orientation, the way from a
//! scan to what the network sees (`preprocess`, with `mask`, `resample` and `intensity`) and back as far as there is one
//! (`restore`), and the way of another image of the same head onto the grid of that scan (`align`, `onto`).
use std::path::PathBuf;

mod affine;
mod align;
mod gzip;
mod header;
mod intensity;
mod mask;
pub mod nifti;
mod onto;
pub mod orientation;
mod preprocess;
mod resample;
mod restore;
mod trilinear;
mod write;

pub use affine::{Affine, IDENTITY};
pub use align::{Alignment, align};
pub use header::{AffineSource, Datatype, Header};
pub use intensity::BACKGROUND;
pub use mask::{HEAD_SPACING, Part, background, components, fit, head_extent, head_mask};
pub use nifti::{Fault, read, read_mean};
pub use onto::{PET_SCALE, Scale, mean_inside, preprocess_onto, same_grid};
pub use preprocess::{Prepared, Preprocessing, Stats, preprocess};
pub use restore::Restored;
pub use write::{Storage, write};

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
        spacing(&self.affine)
    }
}

/// Whether a modality's voxels are measured in units that mean something by themselves, as those of PET are: neither a
/// volume nor a patch is brought to mean 0 and variance 1.
pub fn is_quantitative(modality: &str) -> bool {
    modality == "PET" || modality.starts_with("PET-")
}

/// The lengths of the affine's columns, in millimetres.
fn spacing(affine: &[[f64; 4]; 4]) -> [f64; 3] {
    [0, 1, 2].map(|j| (0..3).map(|i| affine[i][j].powi(2)).sum::<f64>().sqrt())
}

/// How many values satisfy a condition. Counted in pieces, whose 32-bit sums fill a vector register.
pub(crate) fn count(values: &[f32], condition: impl Fn(f32) -> bool) -> usize {
    values
        .chunks(1 << 12)
        .map(|piece| piece.iter().map(|&v| u32::from(condition(v))).sum::<u32>() as usize)
        .sum()
}

/// What can be wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be opened, read or written.
    #[error(transparent)]
    File(#[from] crate::error::FileError),
    /// A file that is there but is no image gyrus can use.
    #[error("{}: not a usable NIfTI image", path.display())]
    Nifti {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        fault: Fault,
    },
    /// A file name that does not say how to write an image.
    #[error("{}: an image is written as .nii or .nii.gz; give the file one of these endings", .0.display())]
    Name(PathBuf),
    /// Voxels that are no numbers.
    #[error("{count} of {total} voxels are NaN or infinite; set them to 0 or repair the file")]
    NotFinite {
        /// How many.
        count: usize,
        /// Of how many.
        total: usize,
    },
    /// Intensities that are no longer the scanner's.
    #[error(
        "{percent:.0} % of the voxels are below 0: the image was normalised, and what a scanner adds to an image can no \
         longer be told; give it as the scanner wrote it"
    )]
    Negative {
        /// The share of all voxels.
        percent: f64,
    },
    /// Preprocessing that cannot be carried out, whatever the image.
    #[error("preprocessing.{key}: {reason}")]
    Setting {
        /// Which setting.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing to see.
    #[error("the brain's voxels all have the value {0}: the image is empty or damaged")]
    Constant(f32),
    /// Nothing to look at.
    #[error("no voxel of the image is inside the brain: {0}")]
    NoBrain(&'static str),
    /// A region that says nothing about the tracer.
    #[error("the mean over {region} is {mean}, which nothing can be divided by")]
    Reference {
        /// Which region.
        region: &'static str,
        /// Its mean.
        mean: f64,
    },
    /// A mask that was made for another image.
    #[error("the mask does not belong to the image: {0}; give the mask that was made from this scan")]
    Mask(String),
}
