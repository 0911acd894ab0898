//! The models by name: sizes that are known to train well, so that nobody has to choose widths and depths.
use super::{Encoder, Mae, Shape};
use serde::{Deserialize, Serialize};

/// A model's size. Heads are 64 channels wide in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Encoder 192 channels x 6 blocks, decoder 192 x 2: for tests and laptops.
    Tiny,
    /// Encoder 384 x 12, decoder 192 x 4.
    Small,
    /// Encoder 768 x 12, decoder 384 x 8: ViT-B.
    Base,
    /// Encoder 1024 x 24, decoder 512 x 8: ViT-L.
    Large,
}

impl Preset {
    /// The encoder's blocks.
    pub fn encoder(self) -> Shape {
        match self {
            Preset::Tiny => Shape { dim: 192, depth: 6, heads: 3 },
            Preset::Small => Shape { dim: 384, depth: 12, heads: 6 },
            Preset::Base => Shape { dim: 768, depth: 12, heads: 12 },
            Preset::Large => Shape { dim: 1024, depth: 24, heads: 16 },
        }
    }
    /// The decoder's blocks.
    pub fn decoder(self) -> Shape {
        match self {
            Preset::Tiny => Shape { dim: 192, depth: 2, heads: 3 },
            Preset::Small => Shape { dim: 192, depth: 4, heads: 3 },
            Preset::Base => Shape { dim: 384, depth: 8, heads: 6 },
            Preset::Large => Shape { dim: 512, depth: 8, heads: 8 },
        }
    }
    /// The masked autoencoder of this size for volumes of `grid` voxels in patches of `patch`³: with a class token,
    /// three quarters of the patches removed, patches normalised before they are compared.
    pub fn mae(self, modalities: Vec<String>, grid: [usize; 3], patch: usize) -> Mae {
        let encoder = Encoder { modalities, grid, patch, shape: self.encoder(), cls_token: true };
        Mae { encoder, decoder: self.decoder(), mask_ratio: 0.75, norm_pix: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_64_wide() {
        for preset in [Preset::Tiny, Preset::Small, Preset::Base, Preset::Large] {
            for shape in [preset.encoder(), preset.decoder()] {
                assert_eq!(shape.dim, 64 * shape.heads, "{preset:?}");
            }
        }
    }
}
