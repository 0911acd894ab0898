//! Tokens between embedding, encoder, decoder and loss: prepend the class token and add positions; pick some tokens out.
//!
//! Positions are tables `[1, T, D]` that are not trained; their first row is the class token's, where there is one.
use super::{WARP_COLS, assert_vectors};
use crate::machine::cuda::{Launch, Result, Stream};
use crate::machine::{Mem, Real};
use crate::tape::{Adjoint, Define, Dtype, Io, Op, Role, Tape, Tensor};
use rayon::prelude::*;

/// Warps of a block of kernels/tokens.cu, and rows that a warp takes of [`WARP_COLS`] columns.
pub(super) const WARPS: usize = 8;
pub(super) const ROWS: usize = 4;

/// Blocks for so many rows of so many columns.
pub(super) fn blocks(rows: usize, dim: usize) -> usize {
    assert_vectors("an operation on tokens", dim);
    (rows.div_ceil(ROWS) * dim.div_ceil(WARP_COLS)).div_ceil(WARPS)
}

pub(super) fn launch(kernel: &'static str, blocks: usize) -> Launch {
    Launch { kernel, grid: [blocks, 1, 1], block: 32 * WARPS, shared: 0 }
}

/// Records `[cls + pos[0]; x[b, i] + pos[c + ids[b, i]]]` for `x: [B, K, D]`, `ids: [B, K]`; `cls: [1, 1, D]` is
/// optional, and c is 1 with it and 0 without. Returns `[B, c + K, D]`.
#[track_caller]
pub fn embed_tokens(t: &mut Tape, x: Tensor, cls: Option<Tensor>, pos: Tensor, ids: Tensor) -> Tensor {
    let &[batch, kept, dim] = t.shape(x) else { panic!("x is [B, K, D], not {:?}", t.shape(x)) };
    t.expect_shape("ids", ids, &[batch, kept]);
    assert!(
        t.info(ids).dtype == Dtype::Index && t.info(pos).role != Role::Param,
        "positions are not trained"
    );
    let c = usize::from(cls.is_some());
    let y = t.activation(&[batch, c + kept, dim]);
    t.push(EmbedTokens { x, cls, pos, ids, y, batch, kept, dim });
    y
}

#[derive(Debug)]
struct EmbedTokens {
    x: Tensor,
    cls: Option<Tensor>,
    pos: Tensor,
    ids: Tensor,
    y: Tensor,
    batch: usize,
    kept: usize,
    dim: usize,
}

impl Op for EmbedTokens {
    fn io(&self) -> Io {
        Io::new([Some(self.x), self.cls, Some(self.pos), Some(self.ids)], [self.y])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dy) = d.of(self.y) else { return };
        let Some(cls) = self.cls else { return d.add(self.x, dy) };
        let (dx, dcls) = (d.tape.activation_like(self.x), d.tape.like(cls));
        let &Self { batch, kept, dim, .. } = self;
        d.tape.push(EmbedTokensGrad { dy, dx, dcls, batch, kept, dim });
        d.add(self.x, dx);
        d.add(cls, dcls);
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { x, cls, pos, ids, y, batch, kept, dim } = self;
        let rows = batch * (usize::from(cls.is_some()) + kept);
        s.launch(
            launch("embed_tokens", blocks(rows, dim)),
            &[
                s.bf16(x).into(),
                cls.map(|t| s.f32(t)).into(),
                s.f32(pos).into(),
                s.indices(ids).into(),
                s.bf16(y).into(),
                batch.into(),
                kept.into(),
                dim.into(),
            ],
        )
    }
}

impl<F: Real> Define<F> for EmbedTokens {
    fn define(&self, m: &Mem<F>) {
        let (x, pos, ids) = (m.read(self.x), m.read(self.pos), m.read_indices(self.ids));
        let (cls, y) = (self.cls.map(|t| m.read(t)), m.write(self.y));
        let &Self { kept, dim, .. } = self;
        let c = usize::from(cls.is_some());
        y.par_chunks_mut((c + kept) * dim).enumerate().for_each(|(b, y)| {
            if let Some(cls) = cls {
                sum(&mut y[..dim], cls, &pos[..dim]);
            }
            for (i, y) in y[c * dim..].chunks_exact_mut(dim).enumerate() {
                let at = b * kept + i;
                sum(y, &x[at * dim..][..dim], &pos[(c + ids[at] as usize) * dim..][..dim]);
            }
        });
    }
}

pub(super) fn sum<F: Real>(y: &mut [F], a: &[F], b: &[F]) {
    y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = *a + *b);
}

pub(super) fn add_to<F: Real>(y: &mut [F], a: &[F]) {
    y.iter_mut().zip(a).for_each(|(y, a)| *y += *a);
}

/// `dx[b, i] = dy[b, 1 + i]`, `dcls = sum over b of dy[b, 0]`.
#[derive(Debug)]
struct EmbedTokensGrad {
    dy: Tensor,
    dx: Tensor,
    dcls: Tensor,
    batch: usize,
    kept: usize,
    dim: usize,
}

impl Op for EmbedTokensGrad {
    fn io(&self) -> Io {
        Io::new([self.dy], [self.dx, self.dcls])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { dy, dx, dcls, batch, kept, dim } = self;
        let sums = dim.div_ceil(WARP_COLS);
        s.launch(
            launch("embed_tokens_grad", sums + blocks(batch * kept, dim)),
            &[
                s.bf16(dy).into(),
                s.bf16(dx).into(),
                s.f32(dcls).into(),
                batch.into(),
                kept.into(),
                dim.into(),
            ],
        )
    }
}

impl<F: Real> Define<F> for EmbedTokensGrad {
    fn define(&self, m: &Mem<F>) {
        let (dy, dx, dcls) = (m.read(self.dy), m.write(self.dx), m.write(self.dcls));
        dcls.fill(F::ZERO);
        let per_sample = self.kept * self.dim;
        for (dy, dx) in dy.chunks_exact(self.dim + per_sample).zip(dx.chunks_exact_mut(per_sample)) {
            add_to(dcls, &dy[..self.dim]);
            dx.copy_from_slice(&dy[self.dim..]);
        }
    }
}

/// An id of [`gather_tokens`] that stands for no row.
pub const ABSENT: u32 = u32::MAX;

/// Records rows `skip + ids[b, i]` of `x: [B, T, D]` for `ids: [B, M]`, none twice; zeros for [`ABSENT`]. Returns
/// `[B, M, D]`.
#[track_caller]
pub fn gather_tokens(t: &mut Tape, x: Tensor, ids: Tensor, skip: usize) -> Tensor {
    let &[_, count] = t.shape(ids) else { panic!("ids are [B, M], not {:?}", t.shape(ids)) };
    gather(t, x, Some(ids), skip, count)
}

/// Records rows `skip..` of `x: [B, T, D]`. Returns `[B, T - skip, D]`.
#[track_caller]
pub fn last_tokens(t: &mut Tape, x: Tensor, skip: usize) -> Tensor {
    let count = t.shape(x)[1] - skip;
    gather(t, x, None, skip, count)
}

#[track_caller]
fn gather(t: &mut Tape, x: Tensor, ids: Option<Tensor>, skip: usize, count: usize) -> Tensor {
    let &[batch, length, dim] = t.shape(x) else { panic!("x is [B, T, D], not {:?}", t.shape(x)) };
    let y = t.activation(&[batch, count, dim]);
    t.push(GatherTokens { x, ids, y, skip, batch, length, count, dim });
    y
}

#[derive(Clone, Copy, Debug)]
struct GatherTokens {
    x: Tensor,
    ids: Option<Tensor>, // one after the other without

    y: Tensor,
    skip: usize,
    batch: usize,
    length: usize,
    count: usize,
    dim: usize,
}

impl GatherTokens {
    /// Where in `x` row `i` of `y` begins, unless it comes from nowhere.
    fn source(&self, ids: Option<&[u32]>, i: usize) -> Option<usize> {
        let id = ids.map_or((i % self.count) as u32, |ids| ids[i]);
        (id != ABSENT).then(|| (i / self.count * self.length + self.skip + id as usize) * self.dim)
    }
}

impl Op for GatherTokens {
    fn io(&self) -> Io {
        Io::new([Some(self.x), self.ids], [self.y])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dy) = d.of(self.y) else { return };
        let dx = d.tape.activation_like(self.x);
        d.tape.push(GatherTokensGrad { of: *self, dy, dx });
        d.add(self.x, dx);
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { x, ids, y, skip, batch, length, count, dim } = self;
        s.launch(
            launch("gather_tokens", blocks(batch * count, dim)),
            &[
                s.bf16(x).into(),
                ids.map(|t| s.indices(t)).into(),
                s.bf16(y).into(),
                batch.into(),
                length.into(),
                count.into(),
                skip.into(),
                dim.into(),
            ],
        )
    }
}

impl<F: Real> Define<F> for GatherTokens {
    fn define(&self, m: &Mem<F>) {
        let (x, y) = (m.read(self.x), m.write(self.y));
        let ids = self.ids.map(|t| m.read_indices(t));
        for (i, y) in y.chunks_exact_mut(self.dim).enumerate() {
            match self.source(ids, i) {
                Some(at) => y.copy_from_slice(&x[at..][..self.dim]),
                None => y.fill(F::ZERO),
            }
        }
    }
}

/// Zero where no row was picked.
#[derive(Debug)]
struct GatherTokensGrad {
    of: GatherTokens,
    dy: Tensor,
    dx: Tensor,
}

impl Op for GatherTokensGrad {
    fn io(&self) -> Io {
        Io::new([Some(self.dy), self.of.ids], [self.dx])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let GatherTokens { ids, skip, batch, length, count, dim, .. } = self.of;
        assert_vectors("gather_tokens", dim);
        s.launch(
            Launch { grid: [length.div_ceil(WARPS * ROWS), batch, 1], ..launch("gather_tokens_grad", 0) },
            &[
                s.bf16(self.dy).into(),
                ids.map(|t| s.indices(t)).into(),
                s.bf16(self.dx).into(),
                length.into(),
                count.into(),
                skip.into(),
                dim.into(),
            ],
        )
    }
}

impl<F: Real> Define<F> for GatherTokensGrad {
    fn define(&self, m: &Mem<F>) {
        let (dy, dx) = (m.read(self.dy), m.write(self.dx));
        let ids = self.of.ids.map(|t| m.read_indices(t));
        dx.fill(F::ZERO);
        for (i, dy) in dy.chunks_exact(self.of.dim).enumerate() {
            if let Some(at) = self.of.source(ids, i) {
                dx[at..][..self.of.dim].copy_from_slice(dy);
            }
        }
    }
}
