//! Makes a scan worse, in ways that scanners and people do, by a known amount: so that what measures of quality see,
//! and what training on bad data costs, can be measured.
//!
//! Everything is a function of a seed, the scan's name and a [`Recipe`]: the four levels of the ladder
//! ([`Recipe::level`]), or one's own. Strengths are in millimetres, degrees and shares of the head; axes are those of
//! the head. So another axis order, or another field of view, does not change what is done. (Slice thickness alone
//! counts the scan's voxels, and ghosts and spikes depend on its field of view, as they do on a scanner.)
//!
//! The distortions act in the order of acquisition: the coil's brightness, motion, the field of view, k-space, the
//! resolution, noise; then what is missing from the file. The scan keeps its grid but where the field of view is cut.
mod canvas;
mod draw;
mod kspace;
mod recipe;
mod space;

#[cfg(test)]
mod physics_tests;

pub use draw::{Along, Distortion, Pose, Spike, TERMS};
pub use recipe::{
    Anisotropy, Axis, BiasField, Blur, Ghosting, Gibbs, LEVELS, Motion, Noise, Range, Recipe, Side, SlabLoss,
    Spikes, Truncation, WrapAround,
};

use crate::image::{
    self, Restored, Volume,
    orientation::{Axes, from_ras},
};
use canvas::{Canvas, cropped};
use draw::Source;
use std::ops;

/// Why a scan cannot be distorted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An image without a head, or with voxels that are no numbers.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// A strength that makes no sense.
    #[error("{key} {reason}")]
    Setting {
        /// Where it stands in the recipe.
        key: &'static str,
        /// What it may be.
        reason: String,
    },
}

/// A distorted scan.
#[derive(Clone, Debug)]
pub struct Distorted {
    /// Its voxels, in the axis order of the scan.
    pub volume: Volume,
    /// The part of the scan's grid that is left, seen as RAS.
    pub kept: [ops::Range<usize>; 3],
    /// What was done, in this order.
    pub applied: Vec<Distortion>,
}

/// Distorts `volume`, the scan named `scan`, by `recipe`.
///
/// # Errors
/// A recipe that makes no sense; an image without a head, or with voxels that are not finite.
pub fn distort(volume: Volume, recipe: &Recipe, seed: u64, scan: &str) -> Result<Distorted, Error> {
    recipe.check()?;
    let source = Source::new(seed, scan);
    carry_out(volume, draw::distortions(recipe, source), source)
}

/// Distorts what [`Restored`] made of a prepared volume as [`distort`] does the scan, as nearly as that can be: slices
/// are as thick as they would be in the scan, and noise is what resampling leaves of the scan's.
///
/// # Errors
/// As there.
pub fn distort_restored(
    restored: &Restored<'_>,
    recipe: &Recipe,
    seed: u64,
    scan: &str,
) -> Result<Distorted, Error> {
    recipe.check()?;
    let source = Source::new(seed, scan);
    let mut applied = draw::distortions(recipe, source);
    let (from, to) = (restored.scan_spacing, restored.volume.spacing());
    applied.retain_mut(|distortion| match distortion {
        Distortion::Noise { sigma } => {
            *sigma *= restored.noise_left;
            true
        }
        Distortion::Anisotropy { axis, factor } => {
            *factor *= from[axis.index()] / to[axis.index()];
            // Slices that are no thicker than the grid's voxels are not seen on it.
            *factor > 1.0
        }
        _ => true,
    });
    carry_out(restored.volume.clone(), applied, source)
}

fn carry_out(volume: Volume, applied: Vec<Distortion>, source: Source) -> Result<Distorted, Error> {
    if applied.is_empty() {
        return Ok(Distorted { kept: ras_shape(&volume).map(|n| 0..n), volume, applied });
    }
    let (affine, shape) = (volume.affine, volume.shape);
    let mut canvas = Canvas::new(volume)?;
    for distortion in &applied {
        apply(&mut canvas, distortion, source);
    }
    let (kept, ras_shape) = (canvas.kept.clone(), canvas.shape);
    let axes = Axes::of(&affine);
    let data = from_ras(&canvas.finish(), ras_shape, axes);
    let own = own_ranges(shape, axes, &kept);
    let volume = Volume { shape: own.clone().map(|r| r.len()), affine: moved(affine, &own), data };
    Ok(Distorted { volume, kept, applied })
}

/// The part `kept` of a volume that lies on the grid of a distorted scan, such as its mask; `None` where its grid is
/// another one than `shape`, seen as RAS.
pub fn keep(volume: &Volume, shape: [usize; 3], kept: &[ops::Range<usize>; 3]) -> Option<Volume> {
    if ras_shape(volume) != shape {
        return None;
    }
    let own = own_ranges(volume.shape, Axes::of(&volume.affine), kept);
    Some(Volume {
        shape: own.clone().map(|r| r.len()),
        affine: moved(volume.affine, &own),
        data: cropped(&volume.data, volume.shape, &own),
    })
}

/// Voxels along x, y and z.
pub fn ras_shape(volume: &Volume) -> [usize; 3] {
    Axes::of(&volume.affine).from.map(|axis| volume.shape[axis])
}

/// Index ranges of RAS axes as those of the file's own axes.
fn own_ranges(shape: [usize; 3], axes: Axes, kept: &[ops::Range<usize>; 3]) -> [ops::Range<usize>; 3] {
    let mut own = shape.map(|n| 0..n);
    for (r, range) in kept.iter().enumerate() {
        let n = shape[axes.from[r]];
        own[axes.from[r]] = if axes.flip[r] { n - range.end..n - range.start } else { range.clone() };
    }
    own
}

/// The affine of the part of a grid that begins where `ranges` do.
fn moved(mut affine: [[f64; 4]; 4], ranges: &[ops::Range<usize>; 3]) -> [[f64; 4]; 4] {
    for row in &mut affine[..3] {
        row[3] += (0..3).map(|axis| row[axis] * ranges[axis].start as f64).sum::<f64>();
    }
    affine
}

fn apply(canvas: &mut Canvas, distortion: &Distortion, source: Source) {
    match *distortion {
        Distortion::BiasField { ref coefficients, .. } => space::bias_field(canvas, coefficients),
        Distortion::Motion { axis, ref poses } => kspace::motion(canvas, axis.index(), poses),
        Distortion::WrapAround { side, mm } => space::wrap_around(canvas, side, mm),
        Distortion::Gibbs { axis, mm } => kspace::gibbs(canvas, axis.index(), mm),
        Distortion::Ghosting { axis, intensity, ghosts, restore } => {
            kspace::ghosting(canvas, axis.index(), intensity, ghosts, restore);
        }
        Distortion::Spikes { ref spikes } => kspace::spikes(canvas, spikes),
        Distortion::Blur { fwhm_mm } => space::blur(canvas, fwhm_mm),
        Distortion::Anisotropy { axis, factor } => space::anisotropy(canvas, axis.index(), factor),
        Distortion::Noise { sigma } => space::noise(canvas, sigma, source),
        Distortion::SlabLoss { axis, fraction, position } => {
            space::slab_loss(canvas, axis.index(), fraction, position);
        }
        Distortion::Truncation { side, mm } => space::truncation(canvas, side, mm),
    }
}
