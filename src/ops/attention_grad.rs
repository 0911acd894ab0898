//! The gradient of [`attention`](super::attention()).
use super::attention::{Attention, BLOCK, Head, ROW, STAGE, STATISTICS};
use super::lanes;
use crate::machine::cuda::{Card, Launch, Result, Stream};
use crate::machine::{Into as Dst, Mat, MatMut, Mem, Real, Threads, for_each_head, gemm, scratch};
use crate::tape::{Define, Io, Op, Tensor};
use multiversion::multiversion;

/// The longest sequence whose gradient one block of a kernel computes whole: two such blocks fit a multiprocessor.
const WHOLE: usize = 96;

/// With `p` the weights and `dp = do vᵀ`: `ds = p (dp - rowsum(do o)) / √width`, `dq = ds k`, `dk = dsᵀ q`,
/// `dv = pᵀ do`. One task owns a head, so each sum has one fixed order.
#[derive(Debug)]
pub(super) struct AttentionGrad {
    pub(super) of: Attention,
    pub(super) dy: Tensor,
    pub(super) dqkv: Tensor,
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
            return self.launch_on_hopper(s);
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
    fn cycles(&self, card: Card) -> Option<usize> {
        self.of.cycles_on_hopper(card).map(|[_, gradient]| gradient)
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
