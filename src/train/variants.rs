//! The volumes of a batch: as the cache stores them in, as the model sees them out.
use super::session::{Computer, Draw};
use crate::data::{Augment, Cache, Variant};
use crate::machine::cuda;
use crate::machine::philox::STREAM;
use crate::ops::{self, augment::SHADING};
use crate::tape::{Dtype, Tape, Tensor};

/// What makes variants of stored volumes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variants {
    stored: Tensor,
    affine: Tensor,
    shading: Tensor,
    noise: Tensor,
    /// The variants, `[B, 1, X, Y, Z]`.
    pub volume: Tensor,
}

impl Variants {
    /// Records them for `batch` volumes of `grid` voxels.
    pub(super) fn record(t: &mut Tape, batch: usize, [x, y, z]: [usize; 3]) -> Self {
        let stored = t.input_as(&[batch, 1, x, y, z], Dtype::Stored);
        let (affine, shading) = (t.input(&[batch, 3, 4]), t.input(&[batch, SHADING]));
        let noise = t.indices(&[batch, STREAM]);
        let volume = ops::augment(t, stored, affine, shading, noise);
        Variants { stored, affine, shading, noise, volume }
    }
    /// Fills in these rows of `cache`: changed at random to learn from, as they are to watch.
    pub(super) fn fill(
        &self,
        machine: &mut Computer,
        cache: &Cache,
        rows: &[usize],
        how: &Augment,
        seed: u64,
        draw: Draw,
    ) -> cuda::Result<()> {
        let none = Augment::none();
        let (how, step) = if let Draw::Learn(step) = draw { (how, step) } else { (&none, 0) };
        let (grid, spacing) = (cache.grid(), cache.preprocessing().nominal_spacing() as f32);
        let variants: Vec<Variant> =
            (0..rows.len()).map(|i| how.draw(grid, spacing, seed, step, i as u32)).collect();
        let affine: Vec<f32> = variants.iter().flat_map(|v| v.affine).flatten().collect();
        let shading: Vec<f32> = variants.iter().flat_map(|v| v.shading.row()).collect();
        let noise: Vec<u32> = variants.iter().flat_map(|v| v.noise).collect();
        machine.write(self.affine, &affine)?;
        machine.write(self.shading, &shading)?;
        machine.write_indices(self.noise, &noise)?;
        machine.fill_stored(self.stored, cache, rows)
    }
}
