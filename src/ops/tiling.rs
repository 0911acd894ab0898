//! How products of matrices are cut into tiles for kernels, and their sums into splits.
use crate::machine::cuda::{Arg, Launch, Ptr, Result, Stream};
use crate::machine::driver::Boxed;

/// The kernels that make a product.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    /// Of kernels/gemm.cuh, with large tiles and with small ones.
    pub(super) portable: [&'static str; 2],
    /// Of kernels/gemm_sm90.cuh, with wide tiles and with narrow ones.
    pub(super) hopper: Option<[&'static str; 2]>,
}

/// A product `c[m, n] = Σ a b` over `sum` elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    /// m and n.
    pub(super) shape: [usize; 2],
    /// Elements of the sum.
    pub(super) sum: usize,
    /// Whether rows of all operands are whole vectors of 8.
    pub(super) in_vectors: bool,
}

/// Whether rows of these two lengths are whole vectors of 8.
pub(super) fn in_vectors(n: usize, k: usize) -> bool {
    n.is_multiple_of(8) && k.is_multiple_of(8)
}

/// An operand in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub(super) at: Ptr,
    /// Rows and columns.
    pub(super) shape: [usize; 2],
    pub(super) lies: Lies,
}

/// How an operand lies to the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lies {
    /// Its rows go along the sum.
    Along,
    /// Its columns do.
    Across,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tile {
    Large,
    Small,
    Wide,
    Narrow,
}

impl Tile {
    /// Rows and columns of c.
    fn shape(self) -> [usize; 2] {
        match self {
            Tile::Large | Tile::Narrow => [128, 128],
            Tile::Small => [64, 64],
            Tile::Wide => [128, 256],
        }
    }
    fn hopper(self) -> bool {
        matches!(self, Tile::Wide | Tile::Narrow)
    }
    fn count(self, shape: [usize; 2]) -> usize {
        let [rows, cols] = self.shape();
        shape[0].div_ceil(rows) * shape[1].div_ceil(cols)
    }
    /// Bytes of shared memory: two operands in blocks of 64 bf16, so many stages of them; for Hopper besides those eight
    /// columns of ones and two barriers for a stage.
    fn shared(self) -> usize {
        let stages = match self {
            Tile::Large => 3,
            Tile::Small | Tile::Wide => 4,
            Tile::Narrow => 6,
        };
        let [rows, cols] = self.shape();
        stages * (rows + cols) * 128 + if self.hopper() { 8 * 128 + stages * 16 } else { 0 }
    }
    /// Tiles that a processor computes at a time.
    fn at_a_time(self) -> usize {
        if self.hopper() { 1 } else { 2 }
    }
    /// How long all of `tiles` tiles take, each with a sum of `blocks` blocks, on a card with so many processors:
    /// in tenths of what a block takes a tile of 128 x 128. To begin and leave a tile is counted as 8 blocks, or on Hopper, where the loads of
    /// the next tile go on meanwhile, as 2. Narrow tiles bring a third more bytes from L2 for each product than wide
    /// ones, which is counted as a tenth of their time. (That is a model, not measured.)
    fn time(self, tiles: usize, blocks: usize, processors: usize) -> usize {
        let waves = tiles.div_ceil(self.at_a_time() * processors);
        match self {
            Tile::Large | Tile::Small => 10 * waves * (blocks + 8),
            Tile::Wide => 20 * waves * (blocks + 2),
            Tile::Narrow => 11 * waves * (blocks + 2),
        }
    }
}

/// How a product is cut into the tiles of a kernel, and its sum into splits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiling {
    kernel: &'static str,
    tile: Tile,
    tiles: usize,
    /// Elements of the sum that a split takes.
    each: usize,
    splits: usize,
}

impl Tiling {
    /// Elements of a block of the sum, of which a split takes a whole number.
    const BLOCK: usize = 64;

    /// Of a whole sum. A processor computes twice as fast in large tiles, but these take rows of whole vectors; and
    /// where more than half of the processors would get none, small ones are done sooner.
    pub(super) fn of(s: &Stream, kernels: Kernels, product: Product) -> Self {
        let Product { shape, sum, in_vectors } = product;
        let processors = s.processors();
        let small = !in_vectors || 2 * Tile::Large.count(shape) < processors;
        let (kernel, tile) = match kernels.hopper {
            _ if small => (kernels.portable[1], Tile::Small),
            Some([wide, narrow]) if s.hopper() => {
                let time = |tile: Tile| tile.time(tile.count(shape), sum.div_ceil(Self::BLOCK), processors);
                if time(Tile::Wide) <= time(Tile::Narrow) {
                    (wide, Tile::Wide)
                } else {
                    (narrow, Tile::Narrow)
                }
            }
            _ => (kernels.portable[0], Tile::Large),
        };
        Tiling { kernel, tile, tiles: tile.count(shape), each: sum, splits: 1 }
    }
    /// Of a sum over many rows to a small c, a weight gradient, which is split until it fills the card.
    pub(super) fn of_split(s: &Stream, kernels: Kernels, product: Product) -> Self {
        let tiles: &[(&'static str, Tile)] = match (product.in_vectors, kernels.hopper) {
            (true, Some([wide, narrow])) if s.hopper() => &[(wide, Tile::Wide), (narrow, Tile::Narrow)],
            (true, _) => &[(kernels.portable[0], Tile::Large)],
            (false, _) => &[(kernels.portable[1], Tile::Small)],
        };
        let best = tiles.iter().map(|&(kernel, tile)| Self::split(kernel, tile, product, s.processors()));
        best.min_by_key(|&(_, time)| time).expect("there is a tile").0
    }
    /// The number of splits whose tiles are all done soonest, and how long they take. To add up 4 more splits is
    /// counted as a block.
    fn split(
        kernel: &'static str,
        tile: Tile,
        Product { shape, sum, .. }: Product,
        processors: usize,
    ) -> (Self, usize) {
        const MOST: usize = 64;
        let (blocks, tiles) = (sum.div_ceil(Self::BLOCK), tile.count(shape));
        let time =
            |splits: usize| tile.time(tiles * splits, blocks.div_ceil(splits), processors) + 10 * splits / 4;
        let splits = (1..=blocks.clamp(1, MOST)).min_by_key(|&n| time(n)).unwrap_or(1);
        let each = blocks.div_ceil(splits) * Self::BLOCK;
        (Tiling { kernel, tile, tiles, each, splits: sum.div_ceil(each) }, time(splits))
    }
    /// Elements of the sum that a split takes, whole blocks where there are several.
    pub(super) fn each(&self) -> usize {
        self.each
    }
    pub(super) fn splits(&self) -> usize {
        self.splits
    }
    /// The left operand a as the kernel takes it: by its address or, on Hopper, by what TMA has to know.
    pub(super) fn left(&self, s: &Stream, a: Matrix) -> Result<Arg> {
        self.operand(s, a, self.tile.shape()[0])
    }
    /// The right operand b.
    pub(super) fn right(&self, s: &Stream, b: Matrix) -> Result<Arg> {
        self.operand(s, b, self.tile.shape()[1])
    }
    fn operand(&self, s: &Stream, Matrix { at, shape, lies }: Matrix, rows: usize) -> Result<Arg> {
        if !self.tile.hopper() {
            return Ok(at.into());
        }
        let of_box = if lies == Lies::Along { [rows, Self::BLOCK] } else { [Self::BLOCK; 2] };
        s.tensor_map(&Boxed { at: at.0, shape: shape.to_vec(), of_box })
    }
    /// Launches the kernel.
    pub(super) fn launch(&self, s: &Stream, args: &[Arg]) -> Result<()> {
        let &Tiling { kernel, tile, tiles, splits, .. } = self;
        let (grid, block) = if tile.hopper() {
            ([(tiles * splits).min(s.processors()), 1, 1], 384)
        } else {
            ([tiles, splits, 1], 128)
        };
        s.launch(Launch { kernel, grid, block, shared: tile.shared() }, args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TILES: [Tile; 4] = [Tile::Large, Tile::Small, Tile::Wide, Tile::Narrow];

    fn split(tile: Tile, shape: [usize; 2], sum: usize) -> Tiling {
        Tiling::split("", tile, Product { shape, sum, in_vectors: true }, 132).0
    }

    /// The weight gradients of a block of width 768 on a card of 132 processors: how full its waves are.
    #[test]
    fn splits_fill_a_card() {
        const ROWS: usize = 64 * 256;
        for tile in [Tile::Large, Tile::Wide, Tile::Narrow] {
            for [n, k] in [[768, 768], [2304, 768], [3072, 768], [768, 3072]] {
                let tiling = split(tile, [n, k], ROWS);
                let places = tile.at_a_time() * 132;
                let waves = (tiling.tiles * tiling.splits).div_ceil(places);
                let full = (tiling.tiles * ROWS) as f64 / (waves * tiling.each * places) as f64;
                assert!(full > 0.8, "{tile:?} {n} x {k}: {waves} waves, {:.0} % full", 100.0 * full);
            }
        }
    }

    #[test]
    fn splits_cover_all_rows_in_whole_blocks() {
        for tile in TILES {
            for rows in [1, 63, 64, 65, 1000, 100_000] {
                let Tiling { each, splits, .. } = split(tile, [8, 8], rows);
                assert!(
                    each.is_multiple_of(Tiling::BLOCK) && splits <= 64,
                    "{rows} rows: {splits} of {each}"
                );
                assert!(
                    (splits - 1) * each < rows && splits * each >= rows,
                    "{rows} rows: {splits} of {each}"
                );
            }
        }
    }

    /// A block of Hopper can have 227 KB; two blocks of the others share 227 KB.
    #[test]
    fn rings_fit_a_multiprocessor() {
        for tile in TILES {
            assert!(tile.at_a_time() * (tile.shared() + 1024) <= 228 << 10, "{tile:?}: {}", tile.shared());
        }
    }
}
