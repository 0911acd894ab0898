//! `o = softmax(q kᵀ / √width) v` per head, over the first `length` keys of each sequence.
//!
//! Queries, keys and values come packed as a linear layer leaves them, `[B, L, 3, H, width]`, and are read in
//! place. Scores exist one tile of query rows at a time; forward keeps only the log of each row's sum of
//! exponentials, from which the gradient recomputes the weights. A sequence without keys yields zeros.
use super::attention_grad::AttentionGrad;
use super::lanes;
use crate::machine::cuda::{Arg, Card, Launch, Result, Stream};
use crate::machine::{Into as Dst, Mat, MatMut, Mem, Real, Threads, for_each_head, gemm, scratch};
use crate::tape::{Adjoint, Define, Dtype, Io, Op, Tape, Tensor};
use multiversion::multiversion;

/// Scores in a tile: 64 Ki of them, 256 KiB in `f32`, which stays in a core's second-level cache.
const TILE: usize = 1 << 16;

/// Rows of a block that the kernels stream, and of keys that one of their blocks owns.
pub(super) const BLOCK: usize = 64;
/// Bytes of a row in the kernels' shared memory: 64 columns of bf16.
pub(super) const ROW: usize = 128;
/// Bytes of two blocks that are streamed together.
pub(super) const STAGE: usize = 2 * BLOCK * ROW;
/// Bytes of a row's statistics.
pub(super) const STATISTICS: usize = 8;
/// Records attention of `qkv: [B, L, 3 D]` with `heads` heads of `D / heads`; `lengths: [B]` (indices) says how
/// many keys of each sequence count, or is left out for all. Returns `[B, L, D]`.
#[track_caller]
pub fn attention(t: &mut Tape, qkv: Tensor, heads: usize, lengths: Option<Tensor>) -> Tensor {
    let &[batch, length, packed] = t.shape(qkv) else {
        panic!("qkv must be [B, L, 3 D], not {:?}", t.shape(qkv))
    };
    assert!(packed.is_multiple_of(3 * heads), "{packed} channels do not split into 3 x {heads} heads");
    if let Some(lengths) = lengths {
        t.expect_shape("lengths", lengths, &[batch]);
        assert_eq!(t.info(lengths).dtype, Dtype::Index, "lengths are indices");
    }
    let y = t.activation(&[batch, length, packed / 3]);
    let log_sum = t.temp(&[batch, heads, length]);
    t.push(Attention { qkv, lengths, y, log_sum, shape: [batch, length, heads, packed / 3 / heads] });
    y
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Attention {
    pub(super) qkv: Tensor,
    pub(super) lengths: Option<Tensor>,
    pub(super) y: Tensor,
    pub(super) log_sum: Tensor,
    pub(super) shape: [usize; 4], // B, L, H, width
}

impl Attention {
    /// Query rows whose scores make a tile.
    pub(super) fn tile_rows(&self) -> usize {
        let length = self.shape[1];
        (TILE / length.max(1)).clamp(1, length.max(1))
    }
    /// Queries, keys and values of head `h` of sample `b`; `keys` of them count.
    pub(super) fn views<'a, F>(&self, qkv: &'a [F], b: usize, h: usize, keys: usize) -> Head<'a, F> {
        let [_, length, heads, width] = self.shape;
        let stride = 3 * heads * width;
        let part = |p: usize, rows: usize| {
            let from = (b * length * stride + (p * heads + h) * width).min(qkv.len());
            Mat::strided(&qkv[from..], [rows, width], stride)
        };
        Head { q: part(0, length), k: part(1, keys), v: part(2, keys) }
    }
    /// Query rows of a kernel's block, a thread each. Few pad a short sequence less; many share what a long one
    /// streams.
    pub(super) fn query_rows(&self) -> usize {
        if self.shape[1] <= 5 * BLOCK { BLOCK } else { 2 * BLOCK }
    }
    /// How many keys of each sequence count, or nothing for all.
    pub(super) fn keys(&self, s: &Stream) -> Arg {
        self.lengths.map(|l| s.indices(l)).into()
    }
    pub(super) fn scale<F: Real>(&self) -> F {
        F::of(1.0 / (self.shape[3] as f64).sqrt())
    }
    /// Multiplications and additions of `products` products of the size of `q kᵀ`.
    pub(super) fn products(&self, products: u64) -> u64 {
        let [batch, length, heads, width] = self.shape;
        products * 2 * (batch * heads * length * length * width) as u64
    }
}

#[derive(Clone, Copy)]
pub(super) struct Head<'a, F> {
    pub(super) q: Mat<'a, F>,
    pub(super) k: Mat<'a, F>,
    pub(super) v: Mat<'a, F>,
}

impl Op for Attention {
    fn io(&self) -> Io {
        Io::new([Some(self.qkv), self.lengths], [self.y, self.log_sum])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dy) = d.of(self.y) else { return };
        let dqkv = d.tape.activation_like(self.qkv);
        d.tape.push(AttentionGrad { of: *self, dy, dqkv });
        d.add(self.qkv, dqkv);
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let [batch, length, heads, width] = self.shape;
        assert!(
            width <= 64 && width.is_multiple_of(8),
            "heads of width {width}: kernels take multiples of 8 to 64"
        );
        if self.on_hopper(s.card()) {
            return self.launch_on_hopper(s);
        }
        let rows = self.query_rows();
        let stages = if length <= BLOCK { 1 } else { 2 };
        s.launch(
            Launch {
                kernel: "attention",
                grid: [length.div_ceil(rows), heads, batch],
                block: rows,
                shared: rows * ROW + stages * STAGE,
            },
            &[
                s.bf16(self.qkv).into(),
                self.keys(s),
                s.bf16(self.y).into(),
                s.f32(self.log_sum).into(),
                length.into(),
                width.into(),
                self.scale::<f32>().into(),
            ],
        )
    }
    fn flops(&self) -> u64 {
        self.products(2)
    }
    fn cycles(&self, card: Card) -> Option<usize> {
        self.cycles_on_hopper(card).map(|[forward, _]| forward)
    }
}

impl<F: Real> Define<F> for Attention {
    fn define(&self, m: &Mem<F>) {
        let (qkv, lengths) = (m.read(self.qkv), self.lengths.map(|l| m.read_indices(l)));
        let (y, log_sum) = (m.write(self.y), m.write(self.log_sum));
        let length = self.shape[1];
        for_each_head(y, log_sum, self.shape, |b, h, [mut y], log_sum| {
            let keys = lengths.map_or(length, |l| l[b] as usize);
            if keys == 0 {
                return (0..length).for_each(|i| y.row(i).fill(F::ZERO));
            }
            let Head { q, k, v } = self.views(qkv, b, h, keys);
            scratch(self.tile_rows() * keys, |tile: &mut [F]| {
                for from in (0..length).step_by(self.tile_rows()) {
                    let to = (from + self.tile_rows()).min(length);
                    let s = &mut tile[..(to - from) * keys];
                    gemm(
                        MatMut::rows(s, [to - from, keys]),
                        q.sub_rows(from, to),
                        k.t(),
                        self.scale(),
                        Dst::Replace,
                        Threads::One,
                    );
                    softmax(s, keys, &mut log_sum[from..to]);
                    gemm(
                        y.sub_rows(from, to),
                        Mat::rows(s, [to - from, keys]),
                        v,
                        F::ONE,
                        Dst::Replace,
                        Threads::One,
                    );
                }
            });
        });
    }
}

/// Each row of `s` becomes `exp(s - max) / sum`; `log_sum` gets `max + ln(sum)`. The exponential runs over the whole
/// tile at once: a row is rarely a whole number of vectors, and what is left over would be computed one by one.
#[multiversion(targets = "simd")]
fn softmax<F: Real>(s: &mut [F], keys: usize, log_sum: &mut [F]) {
    for (s, log_sum) in s.chunks_exact_mut(keys).zip(log_sum.iter_mut()) {
        let (chunks, rest) = s.as_chunks::<16>();
        let mut max = [F::LOWEST; 16];
        for chunk in chunks {
            for (max, s) in max.iter_mut().zip(chunk) {
                *max = max.max(*s);
            }
        }
        *log_sum = max.iter().chain(rest).fold(F::LOWEST, |max, s| max.max(*s));
        s.iter_mut().for_each(|s| *s -= *log_sum);
    }
    s.iter_mut().for_each(|s| *s = s.exp());
    for (s, log_sum) in s.chunks_exact_mut(keys).zip(log_sum) {
        let sum = lanes([s], |[s]| s);
        let scale = F::ONE / sum;
        s.iter_mut().for_each(|s| *s *= scale);
        *log_sum += F::of(sum.f64().ln());
    }
}
