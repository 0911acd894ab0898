//! A variant of each stored volume of a batch: moved by an affine map ([`Affine`]), then shaded ([`Shading`]). What is
//! drawn at random for a variant, a few numbers, is data; only its noise is drawn here, voxel by voxel, from the
//! stream that begins at the sample's `noise`.
//!
//! Prepared volumes are z-scored inside the brain and hold [`BACKGROUND`] outside, and so do
//! their variants. With [`IDENTITY`] and [`Shading::NONE`] the variant is the volume itself. No gradient flows.
mod interpolate;
mod shade;

pub use interpolate::{Affine, IDENTITY, mirror};
pub use shade::{SHADING, Shading};

use crate::image::BACKGROUND;
use crate::machine::cuda::{Launch, Result, Stream};
use crate::machine::philox::STREAM;
use crate::machine::{Mem, Real};
use crate::tape::{Define, Dtype, Io, Op, Tape, Tensor};
use half::f16;
use rayon::prelude::*;

/// Records a variant of each of `stored: [B, M, X, Y, Z]`, by `affine: [B M, 3, 4]`, `shading: [B M, 13]` and, of
/// indices, `noise: [B M, 6]`. Returns `[B, 1, M X, Y, Z]`: the M volumes of a sample one after the other along x, so
/// that the patches of all of them are numbered through.
#[track_caller]
pub fn augment(t: &mut Tape, stored: Tensor, affine: Tensor, shading: Tensor, noise: Tensor) -> Tensor {
    let &[batch, several, x, y, z] = t.shape(stored) else {
        panic!("stored volumes are [B, M, X, Y, Z], not {:?}", t.shape(stored))
    };
    let volumes = batch * several;
    t.expect_shape("affine", affine, &[volumes, 3, 4]);
    t.expect_shape("shading", shading, &[volumes, SHADING]);
    t.expect_shape("noise", noise, &[volumes, STREAM]);
    assert_eq!([t.info(stored).dtype, t.info(noise).dtype], [Dtype::Stored, Dtype::Index]);
    let volume = t.activation(&[batch, 1, several * x, y, z]);
    t.push(Augment { stored, affine, shading, noise, volume, volumes, grid: [x, y, z] });
    volume
}

#[derive(Debug)]
struct Augment {
    stored: Tensor,
    affine: Tensor,
    shading: Tensor,
    noise: Tensor,
    volume: Tensor,
    volumes: usize,
    grid: [usize; 3],
}

impl Op for Augment {
    fn io(&self) -> Io {
        Io::new([self.stored, self.affine, self.shading, self.noise], [self.volume])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        // Voxels of a block: many to each point of the bent grey scale, which every block computes.
        const STRETCH: usize = 16 * 256;
        let &Self { stored, affine, shading, noise, volume, volumes, grid: [x, y, z] } = self;
        assert!(x * y * z < 1 << 31, "on a GPU a volume has less than 2³¹ voxels, not {x} x {y} x {z}");
        s.launch(
            Launch {
                kernel: "augment",
                grid: [(x * y * z).div_ceil(STRETCH), volumes, 1],
                block: 256,
                shared: 0,
            },
            &[
                s.f16(stored).into(),
                s.f32(affine).into(),
                s.f32(shading).into(),
                s.indices(noise).into(),
                s.bf16(volume).into(),
                x.into(),
                y.into(),
                z.into(),
                BACKGROUND.into(),
            ],
        )
    }
}

impl Define<f64> for Augment {
    fn define(&self, m: &Mem<f64>) {
        self.each(m, interpolate::interpolate);
    }
}

impl Define<f32> for Augment {
    fn define(&self, m: &Mem<f32>) {
        self.each(m, interpolate::resample);
    }
}

/// Reads a volume of so many voxels along each axis at the places of a map.
type Interpolate<F> = fn(&[f16], [usize; 3], &Affine<F>, &mut [F]);

impl Augment {
    fn each<F: Real>(&self, m: &Mem<F>, interpolate: Interpolate<F>) {
        let voxels = self.grid.iter().product();
        let stored = m.read_stored(self.stored).par_chunks(voxels);
        let volume = m.write(self.volume).par_chunks_mut(voxels);
        let affine: &[Affine<F>] = m.read(self.affine).as_chunks().0.as_chunks().0;
        let shading = m.read(self.shading).par_chunks(SHADING);
        let noise: &[[u32; STREAM]] = m.read_indices(self.noise).as_chunks().0;
        (stored, volume, affine, shading, noise).into_par_iter().for_each(
            |(stored, volume, affine, shading, noise)| {
                interpolate(stored, self.grid, affine, volume);
                if shading != Shading::NONE.row().map(|v| F::of(v.into())) {
                    shade::shade(Shading::of_row(shading), *noise, self.grid, volume);
                }
            },
        );
    }
}
