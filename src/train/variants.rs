//! The volumes of a batch: as the cache stores them in, as the model sees them out.
use super::samples::Samples;
use super::session::{Computer, Draw};
use crate::data::{Augment, Variant};
use crate::image::is_quantitative;
use crate::machine::cuda;
use crate::machine::philox::STREAM;
use crate::ops::{
    self,
    augment::{SHADING, Shading},
};
use crate::tape::{Dtype, Tape, Tensor};

/// What makes variants of stored volumes.
#[derive(Clone, Debug)]
pub(super) struct Variants {
    modalities: Vec<String>,
    stored: Tensor,
    affine: Tensor,
    shading: Tensor,
    noise: Tensor,
    /// The variants, `[B, 1, M X, Y, Z]`.
    pub volume: Tensor,
}

impl Variants {
    /// Records them for `batch` samples with a volume of `grid` voxels of each modality.
    pub(super) fn record(t: &mut Tape, batch: usize, modalities: &[String], [x, y, z]: [usize; 3]) -> Self {
        let volumes = batch * modalities.len();
        let stored = t.input_as(&[batch, modalities.len(), x, y, z], Dtype::Stored);
        let (affine, shading) = (t.input(&[volumes, 3, 4]), t.input(&[volumes, SHADING]));
        let noise = t.indices(&[volumes, STREAM]);
        let volume = ops::augment(t, stored, affine, shading, noise);
        Variants { modalities: modalities.to_vec(), stored, affine, shading, noise, volume }
    }
    /// Fills in samples `numbers`: changed at random to learn from, as they are to watch. All volumes of a sample are
    /// moved alike, and each is shaded by itself; what is measured in units that mean something keeps its values.
    pub(super) fn fill(
        &self,
        machine: &mut Computer,
        samples: &Samples<'_>,
        numbers: &[usize],
        how: &Augment,
        seed: u64,
        draw: Draw,
    ) -> cuda::Result<()> {
        let none = Augment::none();
        let (how, step) = if let Draw::Learn(step) = draw { (how, step) } else { (&none, 0) };
        let cache = samples.cache;
        let (grid, spacing) = (cache.grid(), cache.preprocessing().nominal_spacing() as f32);
        let variant = |sample: usize, modality: usize| {
            let drawn = |modality: usize| {
                how.draw(grid, spacing, seed, step, (modality * numbers.len() + sample) as u32)
            };
            let variant = Variant { affine: drawn(0).affine, ..drawn(modality) };
            let keep = is_quantitative(&self.modalities[modality]);
            if keep { Variant { shading: Shading::NONE, ..variant } } else { variant }
        };
        let volumes = (0..numbers.len()).flat_map(|i| (0..self.modalities.len()).map(move |m| (i, m)));
        let variants: Vec<Variant> = volumes.map(|(i, m)| variant(i, m)).collect();
        let affine: Vec<f32> = variants.iter().flat_map(|v| v.affine).flatten().collect();
        let shading: Vec<f32> = variants.iter().flat_map(|v| v.shading.row()).collect();
        let noise: Vec<u32> = variants.iter().flat_map(|v| v.noise).collect();
        machine.write(self.affine, &affine)?;
        machine.write(self.shading, &shading)?;
        machine.write_indices(self.noise, &noise)?;
        machine.fill_stored(self.stored, cache, &samples.rows_of(numbers))
    }
}
