//! How products of matrices are cut into tiles for kernels, and their sums into splits.
use crate::machine::cuda::{Arg, Launch, Result, Stream};

/// A kernel of kernels/gemm.cuh with large tiles, and with small ones.
pub(super) type Kernels = [&'static str; 2];

/// How a product is cut into the square tiles of kernels/gemm.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiling {
    tiles: usize,
    large: bool,
}

/// Whether rows of these two lengths are whole vectors of 8.
pub(super) fn in_vectors(n: usize, k: usize) -> bool {
    n.is_multiple_of(8) && k.is_multiple_of(8)
}

impl Tiling {
    /// Rows of a block of the sum, of which a split takes a whole number.
    const BLOCK: usize = 64;

    /// Of a product of shape `[m, n]`. A processor computes twice as fast in large tiles, but these take rows
    /// of whole vectors; and where more than half of the processors would get none, small ones are done
    /// sooner.
    pub(super) fn of(s: &Stream, [m, n]: [usize; 2], in_vectors: bool) -> Self {
        let tiles = |side: usize| m.div_ceil(side) * n.div_ceil(side);
        let large = in_vectors && 2 * tiles(128) >= s.processors();
        Tiling { tiles: tiles(if large { 128 } else { 64 }), large }
    }
    /// Of a weight gradient `[n, k]`, which is split until it fills the card whatever its tiles.
    pub(super) fn of_weights([n, k]: [usize; 2], in_vectors: bool) -> Self {
        let side = if in_vectors { 128 } else { 64 };
        Tiling { tiles: n.div_ceil(side) * k.div_ceil(side), large: in_vectors }
    }
    /// Rows of each split of a sum over `rows`: such that the waves of tiles, two to a processor, are over
    /// soonest. To begin and leave a tile is counted as 8 blocks of the sum, and to add up 4 more splits as
    /// one.
    pub(super) fn split(self, rows: usize, processors: usize) -> usize {
        const MOST: usize = 64;
        let blocks = rows.div_ceil(Self::BLOCK);
        let cost = |splits: usize| {
            let waves = (self.tiles * splits).div_ceil(2 * processors);
            waves * (blocks.div_ceil(splits) + 8) + splits / 4
        };
        let splits = (1..=blocks.clamp(1, MOST)).min_by_key(|&n| cost(n)).unwrap_or(1);
        blocks.div_ceil(splits) * Self::BLOCK
    }
    /// Launches a kernel, `splits` blocks to a tile.
    pub(super) fn launch(
        self,
        s: &Stream,
        [large, small]: Kernels,
        splits: usize,
        args: &[Arg],
    ) -> Result<()> {
        // Two operands, stages, rows of a tile, bytes of a row.
        let (kernel, shared) =
            if self.large { (large, 2 * 3 * 128 * 128) } else { (small, 2 * 4 * 64 * 128) };
        s.launch(Launch { kernel, grid: [self.tiles, splits, 1], block: 128, shared }, args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weight gradients of a block of width 768 on a card of 132 processors: how full its waves are.
    #[test]
    fn splits_fill_a_card() {
        const ROWS: usize = 64 * 256;
        for [n, k] in [[768, 768], [2304, 768], [3072, 768], [768, 3072]] {
            let tiling = Tiling::of_weights([n, k], true);
            let each = tiling.split(ROWS, 132);
            let waves = (tiling.tiles * ROWS.div_ceil(each)).div_ceil(2 * 132);
            let full = (tiling.tiles * ROWS) as f64 / (waves * each * 2 * 132) as f64;
            assert!(full > 0.8, "{n} x {k}: {waves} waves, {:.0} % full", 100.0 * full);
        }
    }

    #[test]
    fn splits_cover_all_rows_in_whole_blocks() {
        let tiling = Tiling::of_weights([8, 8], true);
        for rows in [1, 63, 64, 65, 1000, 100_000] {
            let each = tiling.split(rows, 132);
            assert!(each.is_multiple_of(Tiling::BLOCK) && rows.div_ceil(each) <= 64, "{rows} rows: {each}");
        }
    }
}
