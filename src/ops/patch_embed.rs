//! `y[b, i] = w · patch(volume[b], ids[b, i]) + b`: a strided 3-D convolution at the kept patches only.
use super::Patches;
use super::linear::{affine, weight_grad};
use crate::machine::{Mat, Mem, Real};
use crate::tape::{Adjoint, Define, Dtype, Io, Op, Tape, Tensor};
use rayon::prelude::*;

/// Records the embedding of patches `ids: [B, K]` of `volume: [B, C, X, Y, Z]` by `w: [D, C, p, p, p]` and
/// `b: [D]`. Returns `[B, K, D]`. No gradient flows to the volume.
#[track_caller]
pub fn patch_embed(t: &mut Tape, volume: Tensor, ids: Tensor, w: Tensor, b: Tensor) -> Tensor {
    let &[dim, channels, edge, ..] = t.shape(w) else { panic!("w is [D, C, p, p, p], not {:?}", t.shape(w)) };
    let patches = Patches::of(t, volume, edge);
    t.expect_shape("w", w, &[dim, patches.channels, edge, edge, edge]);
    t.expect_shape("b", b, &[dim]);
    assert_eq!((channels, t.info(ids).dtype), (patches.channels, Dtype::Index));
    let &[batch, kept] = t.shape(ids) else { panic!("ids are [B, K], not {:?}", t.shape(ids)) };
    let rows = t.temp(&[batch * kept, patches.values()]);
    let y = t.temp(&[batch, kept, dim]);
    t.push(PatchEmbed { volume, ids, w, b, rows, y, patches, batch, kept, dim });
    y
}

#[derive(Debug)]
struct PatchEmbed {
    volume: Tensor,
    ids: Tensor,
    w: Tensor,
    b: Tensor,
    rows: Tensor, // [B K, C p³], the kept patches in the order of w
    y: Tensor,
    patches: Patches,
    batch: usize,
    kept: usize,
    dim: usize,
}

impl Op for PatchEmbed {
    fn io(&self) -> Io {
        Io::new([self.volume, self.ids, self.w, self.b], [self.rows, self.y])
    }
    fn vjp(&self, d: &mut Adjoint) {
        assert!(!d.wants(self.volume), "no gradient flows to the volume");
        if let Some(dy) = d.of(self.y) {
            weight_grad(d, dy, self.rows, self.w, self.b);
        }
    }
    fn flops(&self) -> u64 {
        2 * (self.batch * self.kept * self.dim * self.patches.values()) as u64
    }
}

impl<F: Real> Define<F> for PatchEmbed {
    fn define(&self, m: &Mem<F>) {
        let (volume, ids) = (m.read(self.volume), m.read_indices(self.ids));
        let (w, b, rows, y) = (m.read(self.w), m.read(self.b), m.write(self.rows), m.write(self.y));
        let (values, edge) = (self.patches.values(), self.patches.edge);
        rows.par_chunks_mut(values).zip(ids).enumerate().for_each(|(i, (row, &token))| {
            let volume = &volume[i / self.kept * self.patches.volume_len()..];
            for (to, from) in row.chunks_exact_mut(edge).zip(self.patches.lines(token as usize)) {
                to.copy_from_slice(&volume[from..from + edge]);
            }
        });
        affine(y, Mat::rows(rows, [ids.len(), values]), Mat::rows(w, [self.dim, values]), b);
    }
}
