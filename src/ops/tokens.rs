//! Tokens between embedding, encoder, decoder and loss: prepend the class token and add positions; put kept
//! tokens back among mask tokens; pick some tokens out.
//!
//! Positions are tables `[1, T, D]` that are not trained; their first row is the class token's, where there is one.
use crate::machine::{Mem, Real};
use crate::tape::{Adjoint, Define, Dtype, Io, Op, Role, Tape, Tensor};
use rayon::prelude::*;

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
    let y = t.temp(&[batch, c + kept, dim]);
    t.push(EmbedTokens { x, cls, pos, ids, y, kept, dim });
    y
}

#[derive(Debug)]
struct EmbedTokens {
    x: Tensor,
    cls: Option<Tensor>,
    pos: Tensor,
    ids: Tensor,
    y: Tensor,
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
        let (dx, dcls) = (d.tape.like(self.x), d.tape.like(cls));
        d.tape.push(EmbedTokensGrad { dy, dx, dcls, kept: self.kept, dim: self.dim });
        d.add(self.x, dx);
        d.add(cls, dcls);
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
    kept: usize,
    dim: usize,
}

impl Op for EmbedTokensGrad {
    fn io(&self) -> Io {
        Io::new([self.dy], [self.dx, self.dcls])
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
    let y = t.temp(&[batch, c + length, dim]);
    t.push(RestoreTokens { x, mask_token, pos, ids_restore, y, c, rows, dim });
    y
}

#[derive(Clone, Copy, Debug)]
struct RestoreTokens {
    x: Tensor,
    mask_token: Tensor,
    pos: Tensor,
    ids_restore: Tensor,
    y: Tensor,
    c: usize,
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
        let (dx, dmask_token) = (d.tape.like(self.x), d.tape.like(self.mask_token));
        d.tape.push(RestoreTokensGrad { of: *self, dy, dx, dmask_token });
        d.add(self.x, dx);
        d.add(self.mask_token, dmask_token);
    }
}

impl<F: Real> Define<F> for RestoreTokens {
    fn define(&self, m: &Mem<F>) {
        let (x, mask_token, pos) = (m.read(self.x), m.read(self.mask_token), m.read(self.pos));
        let (ids, y) = (m.read_indices(self.ids_restore), m.write(self.y));
        let &Self { c, rows, dim, .. } = self;
        let length = pos.len() / dim - c;
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
}

impl<F: Real> Define<F> for RestoreTokensGrad {
    fn define(&self, m: &Mem<F>) {
        let (dy, ids) = (m.read(self.dy), m.read_indices(self.of.ids_restore));
        let (dx, dmask_token) = (m.write(self.dx), m.write(self.dmask_token));
        let RestoreTokens { c, rows, dim, .. } = self.of;
        let batch = dx.len() / (rows * dim);
        let length = ids.len() / batch;
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
    let y = t.temp(&[batch, count, dim]);
    t.push(GatherTokens { x, ids, y, skip, length, count, dim });
    y
}

#[derive(Clone, Copy, Debug)]
struct GatherTokens {
    x: Tensor,
    ids: Tensor,
    y: Tensor,
    skip: usize,
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
        let dx = d.tape.like(self.x);
        d.tape.push(GatherTokensGrad { of: *self, dy, dx });
        d.add(self.x, dx);
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
