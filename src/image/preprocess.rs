//! From a scan to what the network sees: RAS, cropped to the brain, resampled, normalised. The one path that every
//! stage uses, so that a model never meets an image prepared otherwise than its training data.
//!
//! 1. See image and mask as RAS. Axes are permuted and flipped, never rotated: up to 45 degrees of obliquity stay.
//! 2. Put the grid's centre on the centre of the brain's bounding box, its corner at a given spacing on a voxel's
//!    edge: equal voxel sizes copy voxels, and halving averages them evenly.
//! 3. Resample the image unmasked and the mask alike, and only then cut: zeros outside never darken the brain's rim.
//! 4. Clip the brain at two percentiles, z-score it, put [`BACKGROUND`] elsewhere.
//!
//! Crop and weights come from column norms and index boxes, never from world coordinates: the same head in another
//! orientation, data type or byte order gives the same bits.
use super::{
    BACKGROUND, Error, Volume, count, intensity,
    mask::{self, Inside},
    orientation::{self, Axes, View},
    resample::{Taps, resample},
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How scans are prepared. Kept with every cache and checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Preprocessing {
    /// Voxels along x, y and z.
    pub grid: [usize; 3],
    /// Millimetres between voxels, the same along every axis, so that sizes stay comparable. Without it the brain's
    /// bounding box is stretched to the grid, so that the same place in the grid is nearly the same in every brain.
    pub spacing: Option<f64>,
    /// The brain's intensities are clipped at these percentiles.
    pub clip: [f64; 2],
}

/// Voxels of the grid that stay free at either end of a brain that is stretched to it.
const MARGIN: usize = 2;

impl Preprocessing {
    /// Millimetres between voxels: as set, or what an adult brain of 172 mm from front to back comes to.
    pub fn nominal_spacing(&self) -> f64 {
        self.spacing.unwrap_or_else(|| 172.0 / (self.grid[1] - 2 * MARGIN) as f64)
    }
    /// Millimetres between voxels along x, y and z, for a brain whose bounding box measures `box_mm`.
    pub fn steps(&self, box_mm: [f64; 3]) -> [f64; 3] {
        let stretched = [0, 1, 2].map(|r| box_mm[r] / (self.grid[r] - 2 * MARGIN) as f64);
        self.spacing.map_or(stretched, |mm| [mm; 3])
    }
    /// Refuses settings that no image could be prepared with, naming the key.
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |key, reason| Err(Error::Setting { key, reason });
        let least = if self.spacing.is_none() { 2 * MARGIN + 1 } else { 1 };
        if self.grid.iter().any(|n| !(least..=1024).contains(n)) {
            return refuse("grid", format!("{:?} has an axis outside {least} to 1024 voxels", self.grid));
        }
        if let Some(mm) = self.spacing.filter(|mm| !(0.1..=20.0).contains(mm)) {
            return refuse("spacing", format!("{mm} is outside 0.1 to 20 mm"));
        }
        let [low, high] = self.clip;
        if !(0.0 <= low && low < high && high <= 100.0) {
            return refuse("clip", format!("[{low}, {high}] must be two percentiles, the lower first"));
        }
        Ok(())
    }
}

impl fmt::Display for Preprocessing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([x, y, z], [low, high]) = (self.grid, self.clip);
        match self.spacing {
            Some(mm) => write!(f, "{x}x{y}x{z} voxels of {mm} mm")?,
            None => write!(f, "{x}x{y}x{z} voxels stretched to the brain")?,
        }
        write!(f, ", clipped at the percentiles {low} and {high}")
    }
}

impl Default for Preprocessing {
    /// 80 x 96 x 80 voxels, the brain stretched to them: about 2 mm each.
    fn default() -> Self {
        Preprocessing { grid: [80, 96, 80], spacing: None, clip: [0.5, 99.5] }
    }
}

/// A scan as the network sees it.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Voxels `[x][y][z]`, z fastest: z-scores inside the brain, [`BACKGROUND`] outside.
    pub data: Vec<f32>,
    /// Voxels along x, y and z.
    pub grid: [usize; 3],
    /// Voxel (x, y, z) to RAS millimetres of the original scan.
    pub affine: [[f64; 4]; 4],
    /// Millimetres between voxels along x, y and z.
    pub spacing: [f64; 3],
    /// The share of the grid that is brain.
    pub foreground: f64,
    /// What the scan was before.
    pub stats: Stats,
}

/// What a scan was before it was prepared, and what a user should know about that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Voxels along the file's axes.
    pub shape: [usize; 3],
    /// Millimetres between voxels along the file's axes.
    pub spacing: [f64; 3],
    /// The directions the file's axes run to.
    pub orientation: String,
    /// Volume of the mask, in millilitres.
    pub brain_ml: f64,
    /// Size of the mask's bounding box along x, y and z, in millimetres.
    pub box_mm: [f64; 3],
    /// The brain's intensities at the two percentiles, in the file's units.
    pub percentiles: [f32; 2],
    /// What may be wrong, in words.
    pub warnings: Vec<String>,
}

/// Where the brain is: a mask's voxels, their size, and which values are inside.
struct Brain<'a> {
    view: View<'a>,
    spacing: [f64; 3],
    inside: Inside,
}

/// Prepares one scan. `mask` covers the brain (values above 0.5). Without one, an image that is already skull-stripped
/// is its own mask; of any other the whole head is taken, with a warning.
///
/// Errors: settings out of range, voxels that are not finite, a mask of another scan, no brain, constant intensity.
pub fn preprocess(volume: Volume, mask: Option<Volume>, settings: &Preprocessing) -> Result<Prepared, Error> {
    settings.check()?;
    refuse_not_finite(&volume)?;
    let mut warnings = Vec::new();
    let axes = Axes::of(&volume.affine);
    let view = View::of(&volume);
    let spacing = axes.from.map(|a| volume.spacing()[a]);
    // Kept here because the brain's view borrows it.
    let made;
    let mut whole_head = false;
    let brain = if let Some(mask) = mask {
        refuse_not_finite(&mask)?;
        made = mask::fit(mask, &volume)?;
        Brain { view: View::of(&made), spacing, inside: Inside::Above(0.5) }
    } else if let Some(background) = mask::background(&volume) {
        Brain { view, spacing, inside: Inside::Not(background) }
    } else {
        warnings.push(
            "no brain mask was given and the image is not skull-stripped: skull and scalp are included; a brain mask \
             gives better ages"
                .into(),
        );
        whole_head = true;
        made = mask::head(&view, spacing)?;
        Brain { view: View::of(&made), spacing: [mask::HEAD_SPACING; 3], inside: Inside::Above(0.5) }
    };
    let extent = mask::extent(&brain.view, brain.inside).ok_or(Error::NoBrain("the mask is empty"))?;
    let box_mm = [0, 1, 2].map(|r| (extent.high[r] - extent.low[r]) as f64 * brain.spacing[r]);
    let brain_ml = extent.count as f64 * brain.spacing.iter().product::<f64>() / 1000.0;
    if !whole_head && !(500.0..2500.0).contains(&brain_ml) {
        warnings.push(format!(
            "the brain has {brain_ml:.0} ml, where 500 to 2,500 are expected: is the mask right, and the voxel size?"
        ));
    }

    let step = settings.steps(box_mm);
    let size = [0, 1, 2].map(|r| settings.grid[r] as f64 * step[r]);
    // The grid's low corner, in millimetres from the volume's; at a given spacing on an edge between voxels.
    let corner = [0, 1, 2].map(|r| {
        let centre = (extent.low[r] + extent.high[r]) as f64 / 2.0 * brain.spacing[r];
        let corner = centre - size[r] / 2.0;
        if settings.spacing.is_none() { corner } else { (corner / spacing[r] + 0.5).floor() * spacing[r] }
    });
    // Half a voxel of rounding is no loss.
    let too_large = (0..3).any(|r| box_mm[r] > size[r] + spacing[r]);
    if too_large {
        // A voxel belongs to the grid if its centre does.
        let kept = [0, 1, 2].map(|r| {
            let first = |mm: f64| (mm / brain.spacing[r] - 0.5).ceil().max(0.0) as usize;
            first(corner[r]).min(brain.view.shape[r])..first(corner[r] + size[r]).min(brain.view.shape[r])
        });
        let kept = mask::extent(&brain.view.crop(&kept), brain.inside).map_or(0, |e| e.count);
        let lost = extent.count - kept;
        warnings.push(format!(
            "the {} measures {:.0} x {:.0} x {:.0} mm and does not fit the grid's {:.0} x {:.0} x {:.0} mm: {:.1} % of \
             it is lost; use a larger grid or spacing",
            if whole_head { "head" } else { "brain" },
            box_mm[0],
            box_mm[1],
            box_mm[2],
            size[0],
            size[1],
            size[2],
            100.0 * lost as f64 / extent.count as f64
        ));
    }

    // Only the new voxels that can be brain: those over the box, and one more for rounding.
    let outputs = [0, 1, 2].map(|r| {
        let at = |i: usize| (i as f64 * brain.spacing[r] - corner[r]) / step[r];
        let low = (at(extent.low[r]).floor() - 1.0).max(0.0) as usize;
        let high = (at(extent.high[r]).ceil() + 1.0).max(0.0) as usize;
        low.min(settings.grid[r])..high.min(settings.grid[r])
    });
    let taps = |n: [usize; 3], d: [f64; 3]| {
        [0, 1, 2].map(|r| Taps::new(n[r], corner[r] / d[r], step[r] / d[r], outputs[r].clone()))
    };
    let image = resample(&view, &taps(view.shape, spacing), [2, 1, 0], |v| v);
    let mask_taps = taps(brain.view.shape, brain.spacing);
    let mask = match brain.inside {
        Inside::Above(t) => resample(&brain.view, &mask_taps, [2, 1, 0], |v| Inside::Above(t).value(v)),
        Inside::Not(b) => resample(&brain.view, &mask_taps, [2, 1, 0], |v| Inside::Not(b).value(v)),
    };
    let mut values = Vec::with_capacity(image.len());
    values.extend(image.iter().zip(&mask).filter(|(_, m)| **m >= 0.5).map(|(v, _)| *v));
    if values.is_empty() {
        return Err(Error::NoBrain("it is smaller than one voxel of the grid"));
    }
    let (normalisation, percentiles) = intensity::Normalisation::of(&values, settings.clip)?;

    let [gx, gy, gz] = settings.grid;
    let mut data = vec![BACKGROUND; gx * gy * gz];
    let depth = outputs[2].len();
    for (row, (image, mask)) in image.chunks_exact(depth).zip(mask.chunks_exact(depth)).enumerate() {
        let (x, y) = (outputs[0].start + row / outputs[1].len(), outputs[1].start + row % outputs[1].len());
        let to = &mut data[(x * gy + y) * gz..][outputs[2].clone()];
        for ((to, &v), &m) in to.iter_mut().zip(image).zip(mask) {
            *to = if m >= 0.5 { normalisation.apply(v) } else { BACKGROUND };
        }
    }
    Ok(Prepared {
        foreground: values.len() as f64 / data.len() as f64,
        data,
        grid: settings.grid,
        affine: grid_affine(
            &orientation::ras_affine(&volume.affine, volume.shape, axes),
            spacing,
            corner,
            step,
        ),
        spacing: step,
        stats: Stats {
            shape: volume.shape,
            spacing: volume.spacing(),
            orientation: orientation::code(&volume.affine),
            brain_ml,
            box_mm,
            percentiles,
            warnings,
        },
    })
}

pub(super) fn refuse_not_finite(volume: &Volume) -> Result<(), Error> {
    let count = count(&volume.data, |v| !v.is_finite());
    if count > 0 {
        return Err(Error::NotFinite { count, total: volume.data.len() });
    }
    Ok(())
}

/// The affine of a grid of `step` mm whose low corner lies `corner` mm from that of a RAS volume: voxel edges, not
/// centres, are aligned.
pub(super) fn grid_affine(
    ras: &[[f64; 4]; 4],
    spacing: [f64; 3],
    corner: [f64; 3],
    step: [f64; 3],
) -> [[f64; 4]; 4] {
    let mut m = *ras;
    for i in 0..3 {
        for r in 0..3 {
            m[i][r] = ras[i][r] * step[r] / spacing[r];
            m[i][3] += ras[i][r] * ((corner[r] + 0.5 * step[r]) / spacing[r] - 0.5);
        }
    }
    m
}

#[cfg(test)]
#[path = "preprocess_tests.rs"]
mod tests;
