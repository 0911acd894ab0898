//! Vision transformer blocks on volumes: pre-norm, packed qkv, GELU, an MLP four times as wide, names as in timm.
use crate::ops::{self, Modality, Patches, modality::Kept};
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// What it sees of a head: "T1w" and the like, M of them, each with a patch embedding of its own.
    pub modalities: Vec<String>,
    /// Voxels of a volume along x, y, z.
    pub grid: [usize; 3],
    /// Voxels along a patch's edge.
    pub patch: usize,
    /// Its blocks.
    pub shape: Shape,
    /// Whether a class token goes before the patch tokens.
    pub cls_token: bool,
}

/// The patches an encoder is shown.
#[derive(Clone, Debug)]
pub struct Visible {
    /// Patches, `[B, K]` indices.
    pub ids: Tensor,
    /// How many rows of the sequence count, class token included, `[B]` indices; `None` for all.
    pub length: Option<Tensor>,
    /// Which of them are of each modality; empty where there is one.
    pub of_modality: Vec<Kept>,
}

impl Encoder {
    /// How the volumes of a head, one after the other along x, fall into patches: those of the first modality come
    /// first, and so on.
    pub fn patches(&self) -> Patches {
        let [x, y, z] = self.grid;
        Patches::new(1, [self.modalities.len() * x, y, z], self.patch)
    }
    /// Records volumes that the host fills, `[batch, 1, M X, Y, Z]`.
    pub fn volume(&self, t: &mut Tape, batch: usize) -> Tensor {
        let [x, y, z] = self.patches().volume;
        t.input_as(&[batch, 1, x, y, z], Dtype::Activation)
    }
    /// Rows before the patch tokens: 1 with a class token, 0 without.
    pub fn prefix(&self) -> usize {
        usize::from(self.cls_token)
    }
    /// Its modalities, by number.
    pub fn numbered(&self) -> impl Iterator<Item = Modality> + use<> {
        let of = self.modalities.len();
        (0..of).map(move |number| Modality { number, of })
    }
    /// The name of a modality's part of `layer`: its own where there is one modality.
    pub fn part_of(&self, layer: &str, modality: Modality) -> String {
        match modality.of {
            1 => layer.to_owned(),
            _ => format!("{layer}.{}", self.modalities[modality.number]),
        }
    }
    /// Records which of the patches `ids_shuffle: [B, L]`, of which the first `kept` may be visible, are of each
    /// modality. `length` is that of [`Visible`].
    pub fn visible(&self, t: &mut Tape, ids: Tensor, ids_shuffle: Tensor, length: Option<Tensor>) -> Visible {
        let kept = t.shape(ids)[1];
        let several =
            (self.modalities.len() > 1).then(|| length.expect("several modalities differ in length"));
        let of_modality = several.map_or(Vec::new(), |length| {
            let part =
                |modality| ops::kept_of_modality(t, ids_shuffle, length, self.prefix(), modality, kept);
            self.numbered().map(part).collect()
        });
        Visible { ids, length, of_modality }
    }
    /// Every patch of the modalities that are `present`, then the others, and how many rows count: what the host shows
    /// a model that sees all there is.
    pub fn all_patches(&self, present: &[bool]) -> (Vec<u32>, u32) {
        let (tokens, each) = (self.patches().tokens(), self.patches().tokens() / self.modalities.len());
        let here = |id: &u32| present[*id as usize / each];
        let (mut ids, absent): (Vec<u32>, Vec<u32>) = (0..tokens as u32).partition(here);
        let length = self.prefix() + ids.len();
        ids.extend(absent);
        (ids, length as u32)
    }
    /// Records patch embedding, positions and blocks for the `visible` patches of `volume: [B, 1, M X, Y, Z]`;
    /// `drops` has a drop-path factor per branch (two a block), or none. Returns `[B, prefix + K, D]`, not yet
    /// normalised.
    ///
    /// The bias of a modality's patch embedding is what all of its tokens have in common: its modality embedding.
    pub fn record(&self, t: &mut Tape, volume: Tensor, visible: &Visible, drops: &[Tensor]) -> Tensor {
        let (p, dim) = (self.patch, self.shape.dim);
        let embeddings = self.numbered().map(|modality| {
            let name = self.part_of("patch_embed", modality);
            let w = t.param(format!("{name}.proj.weight"), &[dim, 1, p, p, p]);
            let b = t.param(format!("{name}.proj.bias"), &[dim]);
            match visible.of_modality.get(modality.number) {
                None => ops::patch_embed(t, volume, visible.ids, w, b),
                Some(own) => {
                    let x = ops::patch_embed(t, volume, own.ids, w, b);
                    ops::gather_tokens(t, x, own.places, 0)
                }
            }
        });
        let embeddings: Vec<Tensor> = embeddings.collect();
        let x = embeddings.into_iter().reduce(|a, b| ops::add(t, a, b)).expect("there is a modality");
        t.name(x, "patch_embed");
        let cls = self.cls_token.then(|| t.param("cls_token", &[1, 1, dim]));
        let pos = t.frozen("pos_embed", &[1, self.prefix() + self.patches().tokens(), dim]);
        let x = ops::embed_tokens(t, x, cls, pos, visible.ids);
        blocks(t, "blocks", x, self.shape, visible.length, drops)
    }
    /// The fixed table of sin-cos positions, `[prefix + L, dim]`: each of the three axes has `2 ceil(dim / 6)` channels,
    /// sines then cosines of `position / 10000^(k / ceil(dim / 6))`; what exceeds `dim` is cut off; the row of the class
    /// token is zero. The same place has the same position in every modality.
    pub fn positions(&self, dim: usize) -> Vec<f64> {
        let (waves, [nx, ny, nz]) = (dim.div_ceil(6), self.grid.map(|n| n / self.patch));
        let mut table = vec![0.0; (self.prefix() + self.patches().tokens()) * dim];
        for (token, row) in table[self.prefix() * dim..].chunks_exact_mut(dim).enumerate() {
            let at = [token / (ny * nz) % nx, token / nz % ny, token % nz];
            for (c, value) in row.iter_mut().enumerate() {
                let (axis, wave) = (c / (2 * waves), c % (2 * waves));
                let angle = at[axis] as f64 / 10_000_f64.powf((wave % waves) as f64 / waves as f64);
                *value = if wave < waves { angle.sin() } else { angle.cos() };
            }
        }
        table
    }
}

/// Records `shape.depth` blocks under `name`, each a segment, on sequences of these lengths (`[B]`, indices; `None` for
/// all rows).
pub fn blocks(
    t: &mut Tape,
    name: &str,
    x: Tensor,
    shape: Shape,
    lengths: Option<Tensor>,
    drops: &[Tensor],
) -> Tensor {
    t.name(x, format!("{name}.0.input"));
    (0..shape.depth).fold(x, |x, i| {
        let drops = drops.get(2 * i..2 * i + 2).map(|d| [d[0], d[1]]);
        t.segment(|t| block(t, &format!("{name}.{i}"), x, shape.heads, lengths, drops))
    })
}

/// Records `x + attn(norm1(x))`, then `x + mlp(norm2(x))`.
fn block(
    t: &mut Tape,
    name: &str,
    x: Tensor,
    heads: usize,
    lengths: Option<Tensor>,
    drops: Option<[Tensor; 2]>,
) -> Tensor {
    let dim = *t.shape(x).last().expect("x has an axis");
    let h = norm(t, &format!("{name}.norm1"), x);
    let qkv = linear(t, &format!("{name}.attn.qkv"), h, 3 * dim);
    let h = ops::attention(t, qkv, heads, lengths);
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
    norm_each(t, name, &[x])[0]
}

/// The same for several tensors, which share the parameters.
pub fn norm_each(t: &mut Tape, name: &str, xs: &[Tensor]) -> Vec<Tensor> {
    let dim = *t.shape(xs[0]).last().expect("x has an axis");
    let gamma = t.param(format!("{name}.weight"), &[dim]);
    let beta = t.param(format!("{name}.bias"), &[dim]);
    let norm = |&x: &Tensor| {
        let y = ops::layer_norm(t, x, gamma, beta);
        t.name(y, name)
    };
    xs.iter().map(norm).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens that share a coordinate share that axis's channels: the axes are not swapped.
    #[test]
    fn positions_factorise_over_the_axes() {
        let modalities = ["T1w", "T2w"].map(str::to_owned).to_vec();
        let shape = Shape { dim: 24, depth: 1, heads: 1 };
        let encoder = Encoder { modalities, grid: [4, 6, 8], patch: 2, shape, cls_token: true };
        let (dim, table) = (24, encoder.positions(24));
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
        assert_eq!(row(2, 0, 0), row(0, 0, 0), "the second modality begins again");
    }
}
