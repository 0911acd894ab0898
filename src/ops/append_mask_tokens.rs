//! The decoder's sequence: what the encoder saw, then mask tokens for the rest.
use super::tokens::{ROWS, WARPS, add_to, blocks, launch, sum};
use super::{WARP_COLS, assert_vectors};
use crate::machine::cuda::{Launch, Result, Stream};
use crate::machine::{Mem, Real};
use crate::tape::{Adjoint, Define, Dtype, Io, Op, Role, Tape, Tensor};
use rayon::prelude::*;

/// Records the decoder's sequence: `x: [B, c + K, D]`, then a mask token for each token that was not kept, with
/// positions added. Token i of it is number `ids_shuffle[b, i]` of L, kept ones first; attention knows no order, so it
/// is left like that. The first `visible[b]` rows (of indices, `[B]`; all where it is left out) are of `x`. There are
/// M mask tokens `[M, 1, D]`, one for each M-th of all tokens. Rows before c (the class token) stay in front; `pos` is
/// `[1, c + L, D]`. Returns `[B, c + L, D]`.
#[track_caller]
pub fn append_mask_tokens(
    t: &mut Tape,
    x: Tensor,
    mask_token: Tensor,
    pos: Tensor,
    ids_shuffle: Tensor,
    visible: Option<Tensor>,
) -> Tensor {
    let &[batch, length] = t.shape(ids_shuffle) else { panic!("ids_shuffle is [B, L]") };
    let &[_, rows, dim] = t.shape(x) else { panic!("x is [B, c + K, D], not {:?}", t.shape(x)) };
    let kinds = t.shape(mask_token)[0];
    let c = t.shape(pos)[1] - length;
    t.expect_shape("pos", pos, &[1, c + length, dim]);
    t.expect_shape("mask_token", mask_token, &[kinds, 1, dim]);
    assert!(length.is_multiple_of(kinds), "{length} tokens of {kinds} kinds");
    assert!(t.info(ids_shuffle).dtype == Dtype::Index && t.info(pos).role != Role::Param);
    if let Some(visible) = visible {
        t.expect_shape("visible", visible, &[batch]);
    }
    let y = t.activation(&[batch, c + length, dim]);
    t.push(AppendMaskTokens {
        x,
        mask_token,
        pos,
        ids_shuffle,
        visible,
        y,
        batch,
        c,
        length,
        rows,
        kinds,
        dim,
    });
    y
}

#[derive(Clone, Copy, Debug)]
struct AppendMaskTokens {
    x: Tensor,
    mask_token: Tensor,
    pos: Tensor,
    ids_shuffle: Tensor,
    visible: Option<Tensor>,
    y: Tensor,
    batch: usize,
    c: usize,
    length: usize,
    rows: usize, // c + K
    kinds: usize,
    dim: usize,
}

impl AppendMaskTokens {
    /// How many rows of sample `b` come from `x`.
    fn visible(&self, visible: Option<&[u32]>, b: usize) -> usize {
        visible.map_or(self.rows, |v| v[b] as usize)
    }
    /// Where the mask token for token number `id` begins.
    fn mask_at(&self, id: u32) -> usize {
        id as usize / (self.length / self.kinds) * self.dim
    }
}

impl Op for AppendMaskTokens {
    fn io(&self) -> Io {
        let Self { x, mask_token, pos, ids_shuffle, visible, y, .. } = *self;
        Io::new([Some(x), Some(mask_token), Some(pos), Some(ids_shuffle), visible], [y])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dy) = d.of(self.y) else { return };
        let (dx, dmask_token) = (d.tape.activation_like(self.x), d.tape.like(self.mask_token));
        d.tape.push(AppendMaskTokensGrad { of: *self, dy, dx, dmask_token });
        d.add(self.x, dx);
        d.add(self.mask_token, dmask_token);
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let &Self { x, mask_token, pos, ids_shuffle, visible, y, batch, c, length, rows, kinds, dim } = self;
        s.launch(
            launch("append_mask_tokens", blocks(batch * (c + length), dim)),
            &[
                s.bf16(x).into(),
                s.f32(mask_token).into(),
                s.f32(pos).into(),
                s.indices(ids_shuffle).into(),
                visible.map(|t| s.indices(t)).into(),
                s.bf16(y).into(),
                batch.into(),
                rows.into(),
                c.into(),
                length.into(),
                (length / kinds).into(),
                dim.into(),
            ],
        )
    }
}

impl<F: Real> Define<F> for AppendMaskTokens {
    fn define(&self, m: &Mem<F>) {
        let (x, mask_token, pos) = (m.read(self.x), m.read(self.mask_token), m.read(self.pos));
        let visible = self.visible.map(|t| m.read_indices(t));
        let (ids, y) = (m.read_indices(self.ids_shuffle), m.write(self.y));
        let &Self { c, length, rows, dim, .. } = self;
        y.par_chunks_mut((c + length) * dim).enumerate().for_each(|(b, y)| {
            let (ids, visible) = (&ids[b * length..][..length], self.visible(visible, b));
            for (i, y) in y.chunks_exact_mut(dim).enumerate() {
                let id = i.checked_sub(c).map(|i| ids[i]);
                let from = if i < visible {
                    &x[(b * rows + i) * dim..][..dim]
                } else {
                    &mask_token[id.map_or(0, |id| self.mask_at(id))..][..dim]
                };
                sum(y, from, &pos[id.map_or(i, |id| c + id as usize) * dim..][..dim]);
            }
        });
    }
}

/// `dx[b, i] = dy[b, i]` for the visible rows, zero for the others; each mask token gets the sum of `dy` where it stands.
#[derive(Debug)]
struct AppendMaskTokensGrad {
    of: AppendMaskTokens,
    dy: Tensor,
    dx: Tensor,
    dmask_token: Tensor,
}

impl Op for AppendMaskTokensGrad {
    fn io(&self) -> Io {
        let AppendMaskTokens { ids_shuffle, visible, .. } = self.of;
        Io::new([Some(self.dy), Some(ids_shuffle), visible], [self.dx, self.dmask_token])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let AppendMaskTokens { ids_shuffle, visible, batch, c, length, rows, kinds, dim, .. } = self.of;
        assert_vectors("append_mask_tokens", dim);
        // Four blocks a multiprocessor walk over all rows, each with its columns and its mask token.
        let pieces = dim.div_ceil(WARP_COLS);
        let most = (batch * (c + length)).div_ceil(WARPS * ROWS);
        let parts = (4 * s.card().processors / (pieces * kinds)).clamp(1, most);
        let sums = s.workspace(kinds * parts * dim * size_of::<f32>());
        s.launch(
            Launch { grid: [parts, pieces, kinds], ..launch("append_mask_tokens_grad", 0) },
            &[
                s.bf16(self.dy).into(),
                s.indices(ids_shuffle).into(),
                visible.map(|t| s.indices(t)).into(),
                s.bf16(self.dx).into(),
                sums.into(),
                batch.into(),
                rows.into(),
                c.into(),
                length.into(),
                (length / kinds).into(),
                dim.into(),
            ],
        )?;
        s.launch(
            Launch {
                kernel: "append_mask_tokens_grad_sum",
                grid: [dim.div_ceil(32), kinds, 1],
                block: 1024,
                shared: 0,
            },
            &[sums.into(), s.f32(self.dmask_token).into(), parts.into(), dim.into()],
        )
    }
}

impl<F: Real> Define<F> for AppendMaskTokensGrad {
    fn define(&self, m: &Mem<F>) {
        let (dy, ids) = (m.read(self.dy), m.read_indices(self.of.ids_shuffle));
        let visible = self.of.visible.map(|t| m.read_indices(t));
        let (dx, dmask_token) = (m.write(self.dx), m.write(self.dmask_token));
        let AppendMaskTokens { c, length, rows, dim, .. } = self.of;
        dmask_token.fill(F::ZERO);
        for (b, (dy, dx)) in
            dy.chunks_exact((c + length) * dim).zip(dx.chunks_exact_mut(rows * dim)).enumerate()
        {
            let (ids, visible) = (&ids[b * length..][..length], self.of.visible(visible, b));
            let (kept, masked) = dy.split_at(visible * dim);
            dx[..visible * dim].copy_from_slice(kept);
            dx[visible * dim..].fill(F::ZERO);
            for (dy, &id) in masked.chunks_exact(dim).zip(&ids[visible.saturating_sub(c)..]) {
                add_to(&mut dmask_token[self.of.mask_at(id)..][..dim], dy);
            }
        }
    }
}
