//! `y[b, i] = w · patch(volume[b], ids[b, i]) + b`: a strided 3-D convolution at the kept patches only, a linear
//! layer over these as rows.
use super::Patches;
use super::linear::{Affine, LINEAR, affine, affine_tiling};
use super::weight_grad::WeightGrad;
use crate::machine::cuda::{ALIGN, Arg, Card, Launch, Ptr, Result, Stream};
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
    let y = t.activation(&[batch, kept, dim]);
    let kept = Kept { volume, ids, rows, patches, batch, kept };
    t.push(PatchEmbed { x: kept, w, b, y, dim });
    y
}

/// The kept patches.
#[derive(Clone, Copy, Debug)]
struct Kept {
    volume: Tensor,
    ids: Tensor,
    rows: Tensor, // [B K, C p³]: for the definition, the patches in the order of w
    patches: Patches,
    batch: usize,
    kept: usize,
}

impl Kept {
    fn count(&self) -> usize {
        self.batch * self.kept
    }
    /// Copies them out of the volumes.
    fn gather<'m, F: Real>(&self, m: &'m Mem<F>) -> &'m [F] {
        let (volume, ids, rows) = (m.read(self.volume), m.read_indices(self.ids), m.write(self.rows));
        let edge = self.patches.edge;
        rows.par_chunks_mut(self.patches.values()).zip(ids).enumerate().for_each(|(i, (row, &token))| {
            let volume = &volume[i / self.kept * self.patches.volume_len()..];
            for (to, from) in row.chunks_exact_mut(edge).zip(self.patches.lines(token as usize)) {
                to.copy_from_slice(&volume[from..from + edge]);
            }
        });
        rows
    }
    /// Bytes of their rows as kernels gather them, in bf16; what lies behind is aligned too.
    fn bytes(&self) -> usize {
        (2 * self.count() * self.patches.values()).next_multiple_of(ALIGN)
    }
    /// Gathers them at `rows`.
    fn launch(&self, s: &Stream, rows: Ptr) -> Result<()> {
        const WARPS: usize = 8; // of a block, each with 32 vectors of 8 rows
        let &Kept { kept, patches: Patches { channels, volume: [x, y, z], edge }, .. } = self;
        let vector = 1 << edge.trailing_zeros().min(3);
        let warps = self.patches.values().div_ceil(32 * vector) * self.count().div_ceil(8);
        let extents = [self.count(), kept, channels, x, y, z, edge].map(Arg::from);
        let arrays: [Arg; 3] = [s.bf16(self.volume).into(), s.indices(self.ids).into(), rows.into()];
        s.launch(
            Launch {
                kernel: "patch_rows",
                grid: [warps.div_ceil(WARPS), 1, 1],
                block: 32 * WARPS,
                shared: 0,
            },
            &[&arrays[..], &extents].concat(),
        )
    }
}

#[derive(Debug)]
struct PatchEmbed {
    x: Kept,
    w: Tensor,
    b: Tensor,
    y: Tensor,
    dim: usize,
}

impl Op for PatchEmbed {
    fn io(&self) -> Io {
        Io::new([self.x.volume, self.x.ids, self.w, self.b], [self.y]).scratch([self.x.rows])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let &PatchEmbed { x, w, b, .. } = self;
        assert!(!d.wants(x.volume), "no gradient flows to the volume");
        if let Some(dy) = d.of(self.y) {
            let (grad, rows) = (WeightGrad::of(d.tape, dy, w, b), d.tape.like(x.rows));
            d.tape.push(PatchEmbedGrad { x: Kept { rows, ..x }, dy, grad });
            grad.leave(d, w, b);
        }
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &PatchEmbed { x, w, b, y, dim } = self;
        let rows = s.workspace(x.bytes());
        x.launch(s, rows)?;
        let (w, b) = (s.bf16(w), s.f32(b));
        let product = Affine { x: rows, w, b, rows: x.count(), n: dim, k: x.patches.values() };
        product.launch(s, LINEAR, &[s.bf16(y)], &[])
    }
    fn flops(&self) -> u64 {
        2 * (self.x.count() * self.dim * self.x.patches.values()) as u64
    }
    /// Of the product alone.
    fn cycles(&self, card: Card) -> Option<usize> {
        Some(affine_tiling(card, LINEAR, [self.x.count(), self.dim, self.x.patches.values()]).cycles())
    }
}

impl<F: Real> Define<F> for PatchEmbed {
    fn define(&self, m: &Mem<F>) {
        let (w, b, y) = (m.read(self.w), m.read(self.b), m.write(self.y));
        let (count, values) = (self.x.count(), self.x.patches.values());
        affine(y, Mat::rows(self.x.gather(m), [count, values]), Mat::rows(w, [self.dim, values]), b);
    }
}

/// The gradients of w and b. The patches are gathered again, which takes less memory than keeping them.
#[derive(Debug)]
struct PatchEmbedGrad {
    x: Kept,
    dy: Tensor,
    grad: WeightGrad,
}

impl Op for PatchEmbedGrad {
    fn io(&self) -> Io {
        let scratch = [self.x.rows, self.grad.scratch()];
        Io::new([self.x.volume, self.x.ids, self.dy], self.grad.writes()).scratch(scratch)
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &PatchEmbedGrad { x, dy, grad } = self;
        let split = grad.split(s.card());
        let rows = s.workspace(x.bytes() + split.bytes());
        x.launch(s, rows)?;
        split.launch(s, rows.offset(x.bytes()), s.bf16(dy), rows)
    }
    fn flops(&self) -> u64 {
        self.grad.flops()
    }
    /// The sums of its columns.
    fn folded(&self) -> Vec<Tensor> {
        vec![self.dy]
    }
    /// Of the product alone.
    fn cycles(&self, card: Card) -> Option<usize> {
        Some(self.grad.split(card).cycles())
    }
}

impl<F: Real> Define<F> for PatchEmbedGrad {
    fn define(&self, m: &Mem<F>) {
        self.grad.define(m, m.read(self.dy), self.x.gather(m));
    }
}
