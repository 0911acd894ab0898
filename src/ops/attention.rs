//! `o = softmax(q kᵀ / √width) v` per head, over the first `length` keys of each sequence.
//!
//! Queries, keys and values come packed as a linear layer leaves them, `[B, L, 3, H, width]`, and are read in
//! place. Scores exist one tile of query rows at a time; forward keeps only the log of each row's sum of
//! exponentials, from which the gradient recomputes the weights. A sequence without keys yields zeros.
use super::lanes;
use crate::machine::cuda::{Arg, Card, Launch, Result, Stream};
use crate::machine::driver::Boxed;
use crate::machine::{Into as Dst, Mat, MatMut, Mem, Real, Threads, for_each_head, gemm, scratch};
use crate::tape::{Adjoint, Define, Dtype, Io, Op, Tape, Tensor};
use multiversion::multiversion;

/// Scores in a tile: 64 Ki of them, 256 KiB in `f32`, which stays in a core's second-level cache.
const TILE: usize = 1 << 16;

/// Rows of a block that the kernels stream, and of keys that one of their blocks owns.
const BLOCK: usize = 64;
/// Tokens of the longest sequence that one block of a kernel for Hopper takes whole, a warp for 16 queries or for 32.
const SHORT: usize = 128;
const MEDIUM: usize = 320;
/// Rows of a block of the kernels for longer ones.
const LONG_BLOCK: usize = 128;
/// Rows that a warp of either stores together.
const STORED: usize = 16;
/// Bytes of a row in the kernels' shared memory: 64 columns of bf16.
const ROW: usize = 128;
/// Bytes of two blocks that are streamed together.
const STAGE: usize = 2 * BLOCK * ROW;
/// Bytes of a row's statistics.
const STATISTICS: usize = 8;
/// Bytes of a barrier, and what aligns what comes after it.
const BARRIER: usize = 16;
/// Bytes of a ring of pairs of tiles with three barriers a stage. What holds tiles is a whole number of KiB.
fn ring(rows: usize, stages: usize) -> usize {
    (stages * (2 * rows * ROW + 3 * 8)).next_multiple_of(1024)
}
/// The longest sequence whose gradient one block of a kernel computes whole: two such blocks fit a multiprocessor.
const WHOLE: usize = 96;

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
struct Attention {
    qkv: Tensor,
    lengths: Option<Tensor>,
    y: Tensor,
    log_sum: Tensor,
    shape: [usize; 4], // B, L, H, width
}

impl Attention {
    /// Query rows whose scores make a tile.
    fn tile_rows(&self) -> usize {
        let length = self.shape[1];
        (TILE / length.max(1)).clamp(1, length.max(1))
    }
    /// Queries, keys and values of head `h` of sample `b`; `keys` of them count.
    fn views<'a, F>(&self, qkv: &'a [F], b: usize, h: usize, keys: usize) -> Head<'a, F> {
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
    fn query_rows(&self) -> usize {
        if self.shape[1] <= 5 * BLOCK { BLOCK } else { 2 * BLOCK }
    }
    /// Whether kernels for Hopper take it.
    fn on_hopper(&self, card: Card) -> bool {
        card.hopper && self.shape[3] == 64
    }
    /// Rows of a tile of a whole sequence, and of the boxes that it comes in: at most 256.
    fn whole(&self) -> (usize, usize) {
        let rows = self.shape[1].next_multiple_of(32);
        (rows, if rows <= 256 { rows } else { rows / 2 })
    }
    /// How many keys of each sequence count, or nothing for all.
    fn keys(&self, s: &Stream) -> Arg {
        self.lengths.map(|l| s.indices(l)).into()
    }
    fn launch_on_hopper(&self, s: &Stream) -> Result<()> {
        let [batch, length, heads, _] = self.shape;
        let (rows, of_box) = self.whole();
        let short = |kernel, rows_of_warp| Launch {
            kernel,
            grid: [1, heads, batch],
            block: 32 * length.div_ceil(rows_of_warp),
            shared: 3 * rows * ROW + BARRIER,
        };
        let (launch, of_box) = match length {
            ..=SHORT => (short("attention_short", 16), of_box),
            ..=MEDIUM => (short("attention_medium", 32), of_box),
            // Queries, a ring of four stages, one more barrier.
            _ => (
                self.long_launch("attention_long", LONG_BLOCK * ROW + ring(LONG_BLOCK, 4) + 1024),
                LONG_BLOCK,
            ),
        };
        s.launch(
            launch,
            &[
                self.boxes_of_qkv(s, self.qkv, of_box)?,
                self.boxes(s, self.y, STORED)?,
                self.keys(s),
                s.f32(self.log_sum).into(),
                length.into(),
                self.scale::<f32>().into(),
            ],
        )
    }
    /// A launch of a kernel for long sequences: a warpgroup that loads and two that multiply own a block.
    fn long_launch(&self, kernel: &'static str, shared: usize) -> Launch {
        let [batch, length, heads, _] = self.shape;
        Launch { kernel, grid: [length.div_ceil(LONG_BLOCK), heads, batch], block: 384, shared }
    }
    /// How TMA cuts boxes of `rows` rows of a head from a tensor of the heads of tokens.
    fn boxes(&self, s: &Stream, t: Tensor, rows: usize) -> Result<Arg> {
        self.boxes_of(s, t, 1, rows)
    }
    /// The same from queries, keys and values, or their gradients.
    fn boxes_of_qkv(&self, s: &Stream, t: Tensor, rows: usize) -> Result<Arg> {
        self.boxes_of(s, t, 3, rows)
    }
    fn boxes_of(&self, s: &Stream, t: Tensor, parts: usize, rows: usize) -> Result<Arg> {
        let [batch, length, heads, width] = self.shape;
        let shape = vec![batch, length, parts * heads * width];
        s.tensor_map(&Boxed { at: s.bf16(t).0, shape, of_box: [rows, width] })
    }
    fn scale<F: Real>(&self) -> F {
        F::of(1.0 / (self.shape[3] as f64).sqrt())
    }
    /// Multiplications and additions of `products` products of the size of `q kᵀ`.
    fn products(&self, products: u64) -> u64 {
        let [batch, length, heads, width] = self.shape;
        products * 2 * (batch * heads * length * length * width) as u64
    }
}

#[derive(Clone, Copy)]
struct Head<'a, F> {
    q: Mat<'a, F>,
    k: Mat<'a, F>,
    v: Mat<'a, F>,
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

/// With `p` the weights and `dp = do vᵀ`: `ds = p (dp - rowsum(do o)) / √width`, `dq = ds k`, `dk = dsᵀ q`,
/// `dv = pᵀ do`. One task owns a head, so each sum has one fixed order.
#[derive(Debug)]
struct AttentionGrad {
    of: Attention,
    dy: Tensor,
    dqkv: Tensor,
}

impl AttentionGrad {
    fn launch_short(&self, s: &Stream) -> Result<()> {
        let of = self.of;
        let [batch, length, heads, _] = of.shape;
        let (rows, of_box) = of.whole();
        // A warp for two strips of 16 rows, a thread for each row.
        let launch = Launch {
            kernel: "attention_short_grad",
            grid: [1, heads, batch],
            block: rows.max(128),
            shared: rows * (5 * ROW + STATISTICS) + BARRIER,
        };
        s.launch(
            launch,
            &[
                of.boxes_of_qkv(s, of.qkv, of_box)?,
                of.boxes(s, self.dy, of_box)?,
                of.boxes(s, of.y, of_box)?,
                of.boxes_of_qkv(s, self.dqkv, STORED)?,
                of.keys(s),
                s.f32(of.log_sum).into(),
                length.into(),
                of.scale::<f32>().into(),
            ],
        )
    }
    fn launch_long(&self, s: &Stream) -> Result<()> {
        const OTHER_BLOCK: usize = 64; // queries that meet a block of keys
        let of = self.of;
        let [batch, length, heads, _] = of.shape;
        let statistics = s.workspace(batch * heads * length * STATISTICS);
        let shape: [Arg; 2] = [length.into(), of.scale::<f32>().into()];
        // What the block owns, two tiles and their barrier, and a ring.
        let shared = |rows, stages| 2 * LONG_BLOCK * ROW + 1024 + ring(rows, stages);
        let queries: [Arg; 8] = [
            of.boxes_of_qkv(s, of.qkv, LONG_BLOCK)?,
            of.boxes(s, self.dy, LONG_BLOCK)?,
            of.boxes_of_qkv(s, self.dqkv, STORED)?,
            of.keys(s),
            s.bf16(self.dy).into(),
            s.bf16(of.y).into(),
            s.f32(of.log_sum).into(),
            statistics.into(),
        ];
        let launch = of.long_launch("attention_long_grad_q", shared(LONG_BLOCK, 4));
        s.launch(launch, &[&queries[..], &shape].concat())?;
        let keys: [Arg; 5] = [
            of.boxes_of_qkv(s, of.qkv, OTHER_BLOCK)?,
            of.boxes(s, self.dy, OTHER_BLOCK)?,
            of.boxes_of_qkv(s, self.dqkv, STORED)?,
            of.keys(s),
            statistics.into(),
        ];
        let launch = of.long_launch("attention_long_grad_kv", shared(OTHER_BLOCK, 4));
        s.launch(launch, &[&keys[..], &shape].concat())
    }
}

impl Op for AttentionGrad {
    fn io(&self) -> Io {
        let Attention { qkv, lengths, y, log_sum, .. } = self.of;
        Io::new([Some(self.dy), Some(qkv), Some(y), Some(log_sum), lengths], [self.dqkv])
    }
    fn launch(&self, s: &Stream) -> Result<()> {
        let of = self.of;
        let [batch, length, heads, width] = of.shape;
        let (dy, qkv, dqkv) = (s.bf16(self.dy), s.bf16(of.qkv), s.bf16(self.dqkv));
        let (y, log_sum) = (s.bf16(of.y), s.f32(of.log_sum));
        let shape = [length.into(), width.into(), of.scale::<f32>().into()];
        if of.on_hopper(s.card()) {
            return if length <= MEDIUM { self.launch_short(s) } else { self.launch_long(s) };
        }
        if length <= WHOLE {
            let rows = length.next_multiple_of(32);
            let launch = Launch {
                kernel: "attention_grad",
                grid: [1, heads, batch],
                block: 2 * rows,
                shared: rows * (4 * ROW + STATISTICS),
            };
            let pointers = [dy.into(), qkv.into(), y.into(), log_sum.into(), of.keys(s), dqkv.into()];
            return s.launch(launch, &[&pointers[..], &shape].concat());
        }
        let statistics = s.workspace(batch * heads * length * STATISTICS);
        let rows = of.query_rows();
        let queries = Launch {
            kernel: "attention_grad_q",
            grid: [length.div_ceil(rows), heads, batch],
            block: rows,
            shared: rows * (2 * ROW + STATISTICS) + 2 * STAGE,
        };
        let pointers =
            [dy.into(), qkv.into(), y.into(), log_sum.into(), of.keys(s), dqkv.into(), statistics.into()];
        s.launch(queries, &[&pointers[..], &shape].concat())?;
        let keys = Launch {
            kernel: "attention_grad_kv",
            grid: [length.div_ceil(BLOCK), heads, batch],
            block: 2 * BLOCK,
            shared: STAGE + 2 * (STAGE + BLOCK * STATISTICS),
        };
        let pointers = [dy.into(), qkv.into(), of.keys(s), statistics.into(), dqkv.into()];
        s.launch(keys, &[&pointers[..], &shape].concat())
    }
    fn flops(&self) -> u64 {
        self.of.products(5)
    }
}

impl<F: Real> Define<F> for AttentionGrad {
    fn define(&self, m: &Mem<F>) {
        let of = self.of;
        let [_, length, heads, width] = of.shape;
        let (dy, qkv, y, log_sum) = (m.read(self.dy), m.read(of.qkv), m.read(of.y), m.read(of.log_sum));
        let (lengths, dqkv) = (of.lengths.map(|l| m.read_indices(l)), m.write(self.dqkv));
        let rows = of.tile_rows();
        for_each_head(dqkv, &mut [], of.shape, |b, h, [mut dq, mut dk, mut dv], _| {
            let keys = lengths.map_or(length, |l| l[b] as usize);
            let Head { q, k, v } = of.views(qkv, b, h, keys);
            let head = (b * length * heads + h) * width;
            let log_sum = &log_sum[(b * heads + h) * length..][..length];
            let (y, dy) = (&y[head..], &dy[head..]);
            for d in [&mut dq, &mut dk, &mut dv] {
                (0..length).for_each(|i| d.row(i).fill(F::ZERO));
            }
            if keys == 0 {
                return;
            }
            scratch(2 * rows * keys, |tiles: &mut [F]| {
                for from in (0..length).step_by(rows) {
                    let to = (from + rows).min(length);
                    let shape = [to - from, keys];
                    let (p, ds) = tiles.split_at_mut(rows * keys);
                    let (p, ds) = (&mut p[..(to - from) * keys], &mut ds[..(to - from) * keys]);
                    let (q, dy_rows) = (
                        q.sub_rows(from, to),
                        Mat::strided(dy, [length, width], heads * width).sub_rows(from, to),
                    );
                    gemm(MatMut::rows(p, shape), q, k.t(), of.scale(), Dst::Replace, Threads::One);
                    gemm(MatMut::rows(ds, shape), dy_rows, v.t(), F::ONE, Dst::Replace, Threads::One);
                    for r in from..to {
                        let at = r * heads * width..r * heads * width + width;
                        let (p, ds) =
                            (&mut p[(r - from) * keys..][..keys], &mut ds[(r - from) * keys..][..keys]);
                        score_grad(p, ds, &dy[at.clone()], &y[at], log_sum[r], of.scale());
                    }
                    let (p, ds) = (Mat::rows(p, shape), Mat::rows(ds, shape));
                    gemm(dv.sub_rows(0, keys), p.t(), dy_rows, F::ONE, Dst::Add, Threads::One);
                    gemm(dk.sub_rows(0, keys), ds.t(), q, F::ONE, Dst::Add, Threads::One);
                    gemm(dq.sub_rows(from, to), ds, k, F::ONE, Dst::Replace, Threads::One);
                }
            });
        });
    }
}

/// One row: `p` from scores to weights, `ds` from `dp` to the scores' gradient.
#[multiversion(targets = "simd")]
fn score_grad<F: Real>(p: &mut [F], ds: &mut [F], dy: &[F], y: &[F], log_sum: F, scale: F) {
    let inner = lanes([dy, y], |[dy, y]| dy * y);
    for (p, ds) in p.iter_mut().zip(ds) {
        *p = (*p - log_sum).exp();
        *ds = *p * (*ds - inner) * scale;
    }
}
