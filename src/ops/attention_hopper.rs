//! Attention on Hopper: which kernels take a sequence, and how long they take.
use super::attention::{Attention, ROW, STATISTICS};
use super::attention_grad::AttentionGrad;
use crate::machine::cuda::{Arg, Card, Launch, Result, Stream};
use crate::machine::driver::Boxed;
use crate::tape::Tensor;

/// Tokens of the longest sequences that a block takes whole: in strips of 16 rows, for the gradient too, and in strips of
/// 64.
const SHORT: usize = 160;
const SHORT_GRAD: usize = 144;
const MEDIUM: usize = 320;
/// Rows of a block of the kernels for longer ones: forward, and of the gradient.
const LONG_QUERIES: usize = 256;
const LONG_BLOCK: usize = 128;
/// Keys that meet a block of queries at a time, forward, and the stages of their ring.
const LONG_KEYS: usize = 64;
const LONG_STAGES: usize = 6;
/// Threads that multiply together by wgmma.
const WARPGROUP: usize = 128;
/// Rows that a warp stores together.
const STORED: usize = 16;
/// Bytes of a barrier, and what aligns what comes after it.
const BARRIER: usize = 16;
/// Bytes of a ring of pairs of tiles with three barriers a stage. What holds tiles is a whole number of KiB.
const fn ring(rows: usize, stages: usize) -> usize {
    (stages * (2 * rows * ROW + 3 * 8)).next_multiple_of(1024)
}
/// Bytes of the forward kernel for long sequences: queries, a ring, one more barrier.
const LONG_SHARED: usize = LONG_QUERIES * ROW + ring(LONG_KEYS, LONG_STAGES) + 1024;
/// A block can have 227 KB.
const _: () = assert!(
    MEDIUM * (5 * ROW + STATISTICS) + BARRIER <= 227 << 10
        && LONG_SHARED <= 227 << 10
        && 2 * LONG_BLOCK * ROW + 1024 + ring(LONG_BLOCK, 4) <= 227 << 10
);

/// Warps of a block for so many strips of 16 rows, of which each warp has one or two: at least a thread for each row.
fn short_grad_warps(strips: usize) -> usize {
    if strips <= 6 { strips } else { strips.div_ceil(2) }
}

/// Cycles of a multiprocessor for a head of so many tokens: forward, and the gradient. That is a model, not measured: it
/// follows within a tenth what a simulation of the compiled code gives, issue slots, latencies, tensor cores,
/// exponentials and shared memory, but not the memory of the card. Blocks of short sequences fill each other's waits;
/// medium ones are alone on their multiprocessor and wait for their loads; long ones pay for each block of rows and for each
/// turn over others.
fn cycles_of_head(length: usize) -> [usize; 2] {
    let [strips, chunks, groups, blocks] = [16, 32, 64, LONG_BLOCK].map(|rows| length.div_ceil(rows));
    // Blocks that share a multiprocessor: by the warps for which it has registers, and by its memory.
    let resident = |warps: usize, shared: usize, most_warps: usize| {
        (most_warps / warps).min((228 << 10) / (shared * chunks + BARRIER + 1024)).max(1)
    };
    let forward = if length <= SHORT {
        (2120 + 1290 * chunks) / resident(strips, 32 * 3 * ROW, 20) + 21 * strips * strips
    } else if length <= MEDIUM {
        5790 + 236 * chunks * groups
    } else {
        length.div_ceil(LONG_QUERIES) * (5030 + 1525 * length.div_ceil(LONG_KEYS))
    };
    let gradient = if length <= SHORT_GRAD {
        let warps = short_grad_warps(strips);
        let alone = 3930 + 690 * strips.div_ceil(warps) * strips;
        alone / resident(warps, 32 * (5 * ROW + STATISTICS), 12) + 102 * strips * strips
    } else if length <= MEDIUM {
        8110 + chunks * (980 * groups.div_ceil(3) + 286 * groups)
    } else {
        blocks * (5140 + 1560 * blocks) + blocks * (4070 + 1260 * groups)
    };
    [forward, gradient]
}

impl Attention {
    /// Cycles of a card for all heads, forward and of the gradient, by [`cycles_of_head`].
    pub(super) fn cycles_on_hopper(&self, card: Card) -> Option<[usize; 2]> {
        let [batch, length, heads, _] = self.shape;
        let of_card = |cycles: usize| (batch * heads * cycles).div_ceil(card.processors);
        self.on_hopper(card).then(|| cycles_of_head(length).map(of_card))
    }
    /// Whether kernels for Hopper take it.
    pub(super) fn on_hopper(&self, card: Card) -> bool {
        card.hopper && self.shape[3] == 64
    }
    /// Rows of a tile of a whole sequence, so many at a time, and of the boxes that it comes in: at most 256.
    fn whole(&self, unit: usize) -> (usize, usize) {
        let rows = self.shape[1].next_multiple_of(unit);
        (rows, if rows <= 256 { rows } else { rows / 2 })
    }
    /// A launch of a kernel that has `tiles` tiles of a whole sequence, and so many more bytes for each of its rows.
    fn whole_launch(&self, kernel: &'static str, block: usize, [rows, tiles, more]: [usize; 3]) -> Launch {
        let [batch, _, heads, _] = self.shape;
        Launch { kernel, grid: [1, heads, batch], block, shared: rows * (tiles * ROW + more) + BARRIER }
    }
    /// Launches the kernel that takes sequences of this length.
    pub(super) fn launch_on_hopper(&self, s: &Stream) -> Result<()> {
        let length = self.shape[1];
        let (launch, of_box) = if length <= SHORT {
            let (rows, of_box) = self.whole(32);
            (self.whole_launch("attention_short", 32 * length.div_ceil(16), [rows, 3, 0]), of_box)
        } else if length <= MEDIUM {
            let (rows, of_box) = self.whole(64);
            (self.whole_launch("attention_medium", rows / 64 * WARPGROUP, [rows, 3, 0]), of_box)
        } else {
            (self.long_launch("attention_long", LONG_QUERIES, LONG_SHARED), LONG_KEYS)
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
    /// A launch of a kernel for long sequences: a warpgroup that loads, and one that multiplies for each 64 rows, own a
    /// block of `rows`.
    fn long_launch(&self, kernel: &'static str, rows: usize, shared: usize) -> Launch {
        let [batch, length, heads, _] = self.shape;
        let block = (1 + rows / 64) * WARPGROUP;
        Launch { kernel, grid: [length.div_ceil(rows), heads, batch], block, shared }
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
}

impl AttentionGrad {
    /// Launches the kernels that take sequences of this length.
    pub(super) fn launch_on_hopper(&self, s: &Stream) -> Result<()> {
        if self.of.shape[1] <= MEDIUM { self.launch_whole(s) } else { self.launch_long(s) }
    }
    fn launch_whole(&self, s: &Stream) -> Result<()> {
        let of = self.of;
        let length = of.shape[1];
        let (launch, of_box) = if length <= SHORT_GRAD {
            let (rows, of_box) = of.whole(32);
            let warps = short_grad_warps(length.div_ceil(16));
            (of.whole_launch("attention_short_grad", 32 * warps, [rows, 5, STATISTICS]), of_box)
        } else {
            let (rows, of_box) = of.whole(64);
            (of.whole_launch("attention_medium_grad", 3 * WARPGROUP, [rows, 5, STATISTICS]), of_box)
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
        let launch = of.long_launch("attention_long_grad_q", LONG_BLOCK, shared(LONG_BLOCK, 4));
        s.launch(launch, &[&queries[..], &shape].concat())?;
        let keys: [Arg; 5] = [
            of.boxes_of_qkv(s, of.qkv, OTHER_BLOCK)?,
            of.boxes(s, self.dy, OTHER_BLOCK)?,
            of.boxes_of_qkv(s, self.dqkv, STORED)?,
            of.keys(s),
            statistics.into(),
        ];
        let launch = of.long_launch("attention_long_grad_kv", LONG_BLOCK, shared(OTHER_BLOCK, 4));
        s.launch(launch, &[&keys[..], &shape].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of docs/speed.md: tokens, kernels, cycles forward, two numbers that follow, cycles of the gradient.
    #[test]
    fn the_page_on_speed_says_what_the_model_does() {
        let page = include_str!("../../docs/speed.md");
        let table = page.split("## Attention").nth(1).unwrap().lines();
        let number = |cell: &str| cell.trim().replace(',', "").parse::<usize>();
        let mut rows = 0;
        for cells in table.map(|line| line.split('|').collect::<Vec<_>>()).filter(|cells| cells.len() == 10) {
            let Ok(tokens) = number(cells[1]) else { continue };
            let said = [cells[3], cells[6]].map(|cell| number(cell).unwrap());
            assert_eq!(said, cycles_of_head(tokens), "{tokens} tokens");
            rows += 1;
        }
        assert_eq!(rows, 11);
    }
}
