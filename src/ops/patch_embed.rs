//! `y[b, i] = w · patch(volume[b], ids[b, i]) + b`: a strided 3-D convolution at the kept patches only.
use super::Patches;
use super::linear::affine;
use super::tiling::{Kernels, Product, Tiling};
use super::weight_grad::WeightGrad;
use crate::machine::cuda::{Arg, Launch, Ptr, Result, Stream};
use crate::machine::{Mat, Mem, Real};
use crate::tape::{Adjoint, Define, Dtype, Io, Op, Tape, Tensor};
use rayon::prelude::*;

const PATCH_EMBED: Kernels = Kernels { portable: ["patch_embed", "patch_embed_small"], hopper: None };
const PATCH_EMBED_GRAD: Kernels =
    Kernels { portable: ["patch_embed_grad", "patch_embed_grad_small"], hopper: None };

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
    /// Whether kernels can copy eight voxels at a time, from patches and from rows of `dim`.
    fn in_vectors(&self, dim: usize) -> bool {
        self.patches.edge.is_multiple_of(8) && dim.is_multiple_of(8)
    }
    /// Bytes of the places of patches and of voxels in them, by which kernels gather.
    fn bytes(&self) -> usize {
        (self.count() + self.patches.values()) * size_of::<u32>()
    }
    /// Works them out at `places`. Returns the operand that they are, and its extents beside `dim`.
    fn launch(&self, s: &Stream, places: Ptr, dim: usize) -> Result<([Arg; 3], [Arg; 4])> {
        const BLOCK: usize = 256;
        let &Kept { kept, patches: Patches { channels, volume: [x, y, z], edge }, .. } = self;
        let (rows, values) = (self.count(), self.patches.values());
        let voxels = self.batch * self.patches.volume_len();
        assert!(u32::try_from(voxels).is_ok(), "kernels count voxels in 32 bits: {voxels} are too many");
        let offsets = places.offset(rows * size_of::<u32>());
        let extents = [rows, kept, channels, x, y, z, edge].map(Arg::from);
        s.launch(
            Launch {
                kernel: "patch_places",
                grid: [rows.max(values).div_ceil(BLOCK), 1, 1],
                block: BLOCK,
                shared: 0,
            },
            &[&[s.indices(self.ids).into(), places.into(), offsets.into()], &extents[..]].concat(),
        )?;
        let operand = [s.bf16(self.volume), places, offsets];
        Ok((operand.map(Arg::from), [rows, dim, values, edge].map(Arg::from)))
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
            d.tape.push(PatchEmbedGrad { x: Kept { rows, ..x }, dy, dim: self.dim, grad });
            grad.leave(d, w, b);
        }
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &PatchEmbed { x, w, b, y, dim } = self;
        let (operand, extents) = x.launch(s, s.workspace(x.bytes()), dim)?;
        let rest: [Arg; 3] = [s.bf16(w).into(), s.f32(b).into(), s.bf16(y).into()];
        let args = [&operand[..], &rest, &extents].concat();
        let product =
            Product { shape: [x.count(), dim], sum: x.patches.values(), in_vectors: x.in_vectors(dim) };
        Tiling::of(s, PATCH_EMBED, product).launch(s, &args)
    }
    fn flops(&self) -> u64 {
        2 * (self.x.count() * self.dim * self.x.patches.values()) as u64
    }
}

impl<F: Real> Define<F> for PatchEmbed {
    fn define(&self, m: &Mem<F>) {
        let (w, b, y) = (m.read(self.w), m.read(self.b), m.write(self.y));
        let (count, values) = (self.x.count(), self.x.patches.values());
        affine(y, Mat::rows(self.x.gather(m), [count, values]), Mat::rows(w, [self.dim, values]), b);
    }
}

/// The gradients of w and b. The patches are gathered again, which costs less than keeping them.
#[derive(Debug)]
struct PatchEmbedGrad {
    x: Kept,
    dy: Tensor,
    dim: usize,
    grad: WeightGrad,
}

impl Op for PatchEmbedGrad {
    fn io(&self) -> Io {
        let scratch = [self.x.rows, self.grad.scratch()];
        Io::new([self.x.volume, self.x.ids, self.dy], self.grad.writes()).scratch(scratch)
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &PatchEmbedGrad { x, dy, dim, grad } = self;
        let split = grad.split(s, PATCH_EMBED_GRAD, x.in_vectors(dim));
        let parts = s.workspace(split.bytes() + x.bytes());
        let (operand, extents) = x.launch(s, parts.offset(split.bytes()), dim)?;
        let operands = [&operand[..], &[s.bf16(dy).into()]].concat();
        split.launch(s, parts, &operands, &extents)
    }
    fn flops(&self) -> u64 {
        self.grad.flops()
    }
}

impl<F: Real> Define<F> for PatchEmbedGrad {
    fn define(&self, m: &Mem<F>) {
        self.grad.define(m, m.read(self.dy), self.x.gather(m));
    }
}
