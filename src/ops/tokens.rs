//! Tokens between embedding, encoder, decoder and loss: prepend the class token and add positions; put kept
//! tokens back among mask tokens; pick some tokens out.
//!
//! Positions are tables `[1, T, D]` that are not trained; their first row is the class token's, where there is one.
use super::{WARP_COLS, assert_vectors};
use crate::machine::cuda::{Launch, Result, Stream};
use crate::machine::{Mem, Real};
use crate::tape::{Adjoint, Define, Dtype, Io, Op, Role, Tape, Tensor};
use rayon::prelude::*;

/// Warps of a block of kernels/tokens.cu, and rows that a warp takes of [`WARP_COLS`] columns.
const WARPS: usize = 8;
const ROWS: usize = 4;

/// Blocks for so many rows of so many columns.
fn blocks(rows: usize, dim: usize) -> usize {
    assert_vectors("an operation on tokens", dim);
    (rows.div_ceil(ROWS) * dim.div_ceil(WARP_COLS)).div_ceil(WARPS)
}

fn launch(kernel: &'static str, blocks: usize) -> Launch {
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

fn sum<F: Real>(y: &mut [F], a: &[F], b: &[F]) {
    y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = *a + *b);
}

fn add_to<F: Real>(y: &mut [F], a: &[F]) {
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

/// Records the full sequence of L tokens: token i is row `c + ids_restore[b, i]` of `x: [B, c + K, D]` if that
/// was kept, or else `mask_token: [1, 1, D]`; rows before c (the class token) stay in front; `pos: [1, c + L, D]`
/// is added to all. Returns `[B, c + L, D]`.
#[track_caller]
pub fn restore_tokens(
    t: &mut Tape,
    x: Tensor,
    mask_token: Tensor,
    pos: Tensor,
    ids_restore: Tensor,
) -> Tensor {
    let &[batch, length] = t.shape(ids_restore) else { panic!("ids_restore is [B, L]") };
    let &[_, rows, dim] = t.shape(x) else { panic!("x is [B, c + K, D], not {:?}", t.shape(x)) };
    let c = t.shape(pos)[1] - length;
    t.expect_shape("pos", pos, &[1, c + length, dim]);
    assert!(t.info(ids_restore).dtype == Dtype::Index && t.info(pos).role != Role::Param);
    let y = t.activation(&[batch, c + length, dim]);
    t.push(RestoreTokens { x, mask_token, pos, ids_restore, y, batch, c, length, rows, dim });
    y
}

#[derive(Clone, Copy, Debug)]
struct RestoreTokens {
    x: Tensor,
    mask_token: Tensor,
    pos: Tensor,
    ids_restore: Tensor,
    y: Tensor,
    batch: usize,
    c: usize,
    length: usize,
    rows: usize, // c + K
    dim: usize,
}

impl RestoreTokens {
    /// The row of `x` that row `i` of the full sequence comes from, if it was kept.
    fn source(&self, ids_restore: &[u32], i: usize) -> Option<usize> {
        let row = if i < self.c { i } else { self.c + ids_restore[i - self.c] as usize };
        (row < self.rows).then_some(row)
    }
}

impl Op for RestoreTokens {
    fn io(&self) -> Io {
        Io::new([self.x, self.mask_token, self.pos, self.ids_restore], [self.y])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dy) = d.of(self.y) else { return };
        let (dx, dmask_token) = (d.tape.activation_like(self.x), d.tape.like(self.mask_token));
        d.tape.push(RestoreTokensGrad { of: *self, dy, dx, dmask_token });
        d.add(self.x, dx);
        d.add(self.mask_token, dmask_token);
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { x, mask_token, pos, ids_restore, y, batch, c, length, rows, dim } = self;
        // A warp takes one token of ROWS samples.
        let all = batch.next_multiple_of(ROWS) * (c + length);
        s.launch(
            launch("restore_tokens", blocks(all, dim)),
            &[
                s.bf16(x).into(),
                s.f32(mask_token).into(),
                s.f32(pos).into(),
                s.indices(ids_restore).into(),
                s.bf16(y).into(),
                batch.into(),
                rows.into(),
                c.into(),
                length.into(),
                dim.into(),
            ],
        )
    }
}

impl<F: Real> Define<F> for RestoreTokens {
    fn define(&self, m: &Mem<F>) {
        let (x, mask_token, pos) = (m.read(self.x), m.read(self.mask_token), m.read(self.pos));
        let (ids, y) = (m.read_indices(self.ids_restore), m.write(self.y));
        let &Self { c, length, rows, dim, .. } = self;
        y.par_chunks_mut((c + length) * dim).enumerate().for_each(|(b, y)| {
            let ids = &ids[b * length..][..length];
            for (i, y) in y.chunks_exact_mut(dim).enumerate() {
                let from = self.source(ids, i).map_or(mask_token, |r| &x[(b * rows + r) * dim..][..dim]);
                sum(y, from, &pos[i * dim..][..dim]);
            }
        });
    }
}

#[derive(Debug)]
struct RestoreTokensGrad {
    of: RestoreTokens,
    dy: Tensor,
    dx: Tensor,
    dmask_token: Tensor,
}

impl Op for RestoreTokensGrad {
    fn io(&self) -> Io {
        Io::new([self.dy, self.of.ids_restore], [self.dx, self.dmask_token])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let RestoreTokens { ids_restore, batch, c, length, rows, dim, .. } = self.of;
        assert_vectors("restore_tokens", dim);
        // Four blocks a multiprocessor walk over all rows, each with its columns.
        let pieces = dim.div_ceil(WARP_COLS);
        let parts = (4 * s.processors() / pieces).clamp(1, (batch * (c + length)).div_ceil(WARPS * ROWS));
        let sums = s.workspace(parts * dim * size_of::<f32>());
        s.launch(
            Launch { grid: [parts, pieces, 1], ..launch("restore_tokens_grad", 0) },
            &[
                s.bf16(self.dy).into(),
                s.indices(ids_restore).into(),
                s.bf16(self.dx).into(),
                sums.into(),
                batch.into(),
                rows.into(),
                c.into(),
                length.into(),
                dim.into(),
            ],
        )?;
        s.launch(
            Launch {
                kernel: "restore_tokens_grad_sum",
                grid: [dim.div_ceil(32), 1, 1],
                block: 1024,
                shared: 0,
            },
            &[sums.into(), s.f32(self.dmask_token).into(), parts.into(), dim.into()],
        )
    }
}

impl<F: Real> Define<F> for RestoreTokensGrad {
    fn define(&self, m: &Mem<F>) {
        let (dy, ids) = (m.read(self.dy), m.read_indices(self.of.ids_restore));
        let (dx, dmask_token) = (m.write(self.dx), m.write(self.dmask_token));
        let RestoreTokens { c, length, rows, dim, .. } = self.of;
        dmask_token.fill(F::ZERO);
        for (b, dy) in dy.chunks_exact((c + length) * dim).enumerate() {
            let ids = &ids[b * length..][..length];
            for (i, dy) in dy.chunks_exact(dim).enumerate() {
                match self.of.source(ids, i) {
                    Some(r) => dx[(b * rows + r) * dim..][..dim].copy_from_slice(dy),
                    None => add_to(dmask_token, dy),
                }
            }
        }
    }
}

/// Records rows `skip + ids[b, i]` of `x: [B, T, D]` for `ids: [B, M]`, none twice. Returns `[B, M, D]`.
#[track_caller]
pub fn gather_tokens(t: &mut Tape, x: Tensor, ids: Tensor, skip: usize) -> Tensor {
    let &[batch, count] = t.shape(ids) else { panic!("ids are [B, M], not {:?}", t.shape(ids)) };
    let &[_, length, dim] = t.shape(x) else { panic!("x is [B, T, D], not {:?}", t.shape(x)) };
    let y = t.activation(&[batch, count, dim]);
    t.push(GatherTokens { x, ids, y, skip, batch, length, count, dim });
    y
}

#[derive(Clone, Copy, Debug)]
struct GatherTokens {
    x: Tensor,
    ids: Tensor,
    y: Tensor,
    skip: usize,
    batch: usize,
    length: usize,
    count: usize,
    dim: usize,
}

impl GatherTokens {
    /// Where in `x` row `i` of `y` begins.
    fn source(&self, ids: &[u32], i: usize) -> usize {
        (i / self.count * self.length + self.skip + ids[i] as usize) * self.dim
    }
}

impl Op for GatherTokens {
    fn io(&self) -> Io {
        Io::new([self.x, self.ids], [self.y])
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
                s.indices(ids).into(),
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
        let (x, ids, y) = (m.read(self.x), m.read_indices(self.ids), m.write(self.y));
        for (i, y) in y.chunks_exact_mut(self.dim).enumerate() {
            y.copy_from_slice(&x[self.source(ids, i)..][..self.dim]);
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
        Io::new([self.dy, self.of.ids], [self.dx])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let GatherTokens { ids, skip, batch, length, count, dim, .. } = self.of;
        assert_vectors("gather_tokens", dim);
        s.launch(
            Launch { grid: [length.div_ceil(WARPS * ROWS), batch, 1], ..launch("gather_tokens_grad", 0) },
            &[
                s.bf16(self.dy).into(),
                s.indices(ids).into(),
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
        let (dy, ids, dx) = (m.read(self.dy), m.read_indices(self.of.ids), m.write(self.dx));
        dx.fill(F::ZERO);
        for (i, dy) in dy.chunks_exact(self.of.dim).enumerate() {
            dx[self.of.source(ids, i)..][..self.of.dim].copy_from_slice(dy);
        }
    }
}
