//! Vision transformer blocks on volumes: pre-norm, packed qkv, GELU, an MLP four times as wide, names as in timm.
use crate::ops::{self, Patches};
use crate::tape::{Dtype, Tape, Tensor};
use serde::{Deserialize, Serialize};

/// The size of a stack of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Channels of a token, D.
    pub dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
}

/// What the encoder sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// Voxels of the volume along x, y, z.
    pub grid: [usize; 3],
    /// Voxels along a patch's edge.
    pub patch: usize,
    /// Its blocks.
    pub shape: Shape,
    /// Whether a class token goes before the patch tokens.
    pub cls_token: bool,
}

impl Encoder {
    /// How the volume falls into patches (one channel).
    pub fn patches(&self) -> Patches {
        Patches::new(1, self.grid, self.patch)
    }
    /// Records volumes that the host fills, `[batch, 1, X, Y, Z]`.
    pub fn volume(&self, t: &mut Tape, batch: usize) -> Tensor {
        let [x, y, z] = self.grid;
        t.input_as(&[batch, 1, x, y, z], Dtype::Activation)
    }
    /// Rows before the patch tokens: 1 with a class token, 0 without.
    pub fn prefix(&self) -> usize {
        usize::from(self.cls_token)
    }
    /// Records patch embedding, positions and blocks for patches `ids: [B, K]` of `volume: [B, 1, X, Y, Z]`;
    /// `drops` has a drop-path factor per branch (two a block), or none. Returns `[B, prefix + K, D]`, not yet
    /// normalised.
    pub fn record(&self, t: &mut Tape, volume: Tensor, ids: Tensor, drops: &[Tensor]) -> Tensor {
        let (p, dim) = (self.patch, self.shape.dim);
        let w = t.param("patch_embed.proj.weight", &[dim, 1, p, p, p]);
        let b = t.param("patch_embed.proj.bias", &[dim]);
        let cls = self.cls_token.then(|| t.param("cls_token", &[1, 1, dim]));
        let pos = t.frozen("pos_embed", &[1, self.prefix() + self.patches().tokens(), dim]);
        let x = ops::patch_embed(t, volume, ids, w, b);
        t.name(x, "patch_embed");
        let x = ops::embed_tokens(t, x, cls, pos, ids);
        blocks(t, "blocks", x, self.shape, drops)
    }
}

/// Records `shape.depth` blocks under `name`.
pub fn blocks(t: &mut Tape, name: &str, x: Tensor, shape: Shape, drops: &[Tensor]) -> Tensor {
    t.name(x, format!("{name}.0.input"));
    (0..shape.depth).fold(x, |x, i| {
        let drops = drops.get(2 * i..2 * i + 2).map(|d| [d[0], d[1]]);
        block(t, &format!("{name}.{i}"), x, shape.heads, drops)
    })
}

/// Records `x + attn(norm1(x))`, then `x + mlp(norm2(x))`.
fn block(t: &mut Tape, name: &str, x: Tensor, heads: usize, drops: Option<[Tensor; 2]>) -> Tensor {
    let dim = *t.shape(x).last().expect("x has an axis");
    let h = norm(t, &format!("{name}.norm1"), x);
    let qkv = linear(t, &format!("{name}.attn.qkv"), h, 3 * dim);
    let h = ops::attention(t, qkv, heads, None);
    let (w, b) = linear_params(t, &format!("{name}.attn.proj"), dim, dim);
    let x = ops::linear_residual(t, h, w, b, x, drops.map(|d| d[0]));
    t.name(x, format!("{name}.between"));
    let h = norm(t, &format!("{name}.norm2"), x);
    let (w, b) = linear_params(t, &format!("{name}.mlp.fc1"), 4 * dim, dim);
    let h = ops::linear_gelu(t, h, w, b);
    t.name(h.pre, format!("{name}.mlp.fc1"));
    t.name(h.value, format!("{name}.mlp.act"));
    let (w, b) = linear_params(t, &format!("{name}.mlp.fc2"), dim, 4 * dim);
    let x = ops::linear_residual(t, h, w, b, x, drops.map(|d| d[1]));
    t.name(x, name)
}

/// Records a layer norm with parameters under `name`.
pub fn norm(t: &mut Tape, name: &str, x: Tensor) -> Tensor {
    let dim = *t.shape(x).last().expect("x has an axis");
    let gamma = t.param(format!("{name}.weight"), &[dim]);
    let beta = t.param(format!("{name}.bias"), &[dim]);
    let y = ops::layer_norm(t, x, gamma, beta);
    t.name(y, name)
}

/// Records a linear layer to `outputs` channels with parameters under `name`.
pub fn linear(t: &mut Tape, name: &str, x: Tensor, outputs: usize) -> Tensor {
    layer(t, name, x, outputs, ops::linear)
}

/// The same for outputs that are read out, such as an age: left in full precision.
pub fn head(t: &mut Tape, name: &str, x: Tensor, outputs: usize) -> Tensor {
    layer(t, name, x, outputs, ops::linear_real)
}

fn layer(
    t: &mut Tape,
    name: &str,
    x: Tensor,
    outputs: usize,
    record: fn(&mut Tape, Tensor, Tensor, Tensor) -> Tensor,
) -> Tensor {
    let inputs = *t.shape(x).last().expect("x has an axis");
    let (w, b) = linear_params(t, name, outputs, inputs);
    let y = record(t, x, w, b);
    t.name(y, name)
}

fn linear_params(t: &mut Tape, name: &str, outputs: usize, inputs: usize) -> (Tensor, Tensor) {
    (t.param(format!("{name}.weight"), &[outputs, inputs]), t.param(format!("{name}.bias"), &[outputs]))
}

/// The fixed table of sin-cos positions, `[prefix + L, dim]`: each of the three axes has `2 ceil(dim / 6)`
/// channels, sines then cosines of `position / 10000^(k / ceil(dim / 6))`; what exceeds `dim` is cut off; the
/// rows of the prefix are zero.
pub fn positions(dim: usize, grid: [usize; 3], prefix: usize) -> Vec<f64> {
    let waves = dim.div_ceil(6);
    let mut table = vec![0.0; (prefix + grid.iter().product::<usize>()) * dim];
    for (token, row) in table[prefix * dim..].chunks_exact_mut(dim).enumerate() {
        let at = [token / (grid[1] * grid[2]), token / grid[2] % grid[1], token % grid[2]];
        for (c, value) in row.iter_mut().enumerate() {
            let (axis, wave) = (c / (2 * waves), c % (2 * waves));
            let angle = at[axis] as f64 / 10_000_f64.powf((wave % waves) as f64 / waves as f64);
            *value = if wave < waves { angle.sin() } else { angle.cos() };
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens that share a coordinate share that axis's channels: the axes are not swapped.
    #[test]
    fn positions_factorise_over_the_axes() {
        let (dim, grid) = (24, [2, 3, 4]);
        let table = positions(dim, grid, 1);
        assert!(table[..dim].iter().all(|&v| v == 0.0));
        let row = |x: usize, y: usize, z: usize| &table[dim * (1 + (x * 3 + y) * 4 + z)..][..dim];
        let axis = |row: &'_ [f64], a: usize| row[8 * a..8 * a + 8].to_vec();
        for (x, y, z) in [(0, 0, 0), (1, 2, 3), (1, 0, 2), (0, 1, 3)] {
            assert_eq!(axis(row(x, y, z), 0), axis(row(x, 0, 0), 0));
            assert_eq!(axis(row(x, y, z), 1), axis(row(0, y, 0), 1));
            assert_eq!(axis(row(x, y, z), 2), axis(row(0, 0, z), 2));
        }
        assert_eq!(row(1, 2, 3)[0], 1_f64.sin());
        assert_eq!(row(1, 2, 3)[8], 2_f64.sin());
        assert_eq!(row(1, 2, 3)[16], 3_f64.sin());
    }
}
