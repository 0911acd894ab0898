//! How products of matrices are cut into tiles for kernels, and their sums into splits.
use crate::machine::cuda::{Arg, Card, Launch, Ptr, Result, Stream};
use crate::machine::driver::Boxed;

/// The kernels that make a product.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    /// Of kernels/gemm.cuh, with large tiles and with small ones.
    pub(super) portable: [&'static str; 2],
    /// Of kernels/gemm_sm90.cuh.
    pub(super) hopper: Option<Hopper>,
}

/// Those for Hopper.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hopper {
    /// With wide tiles.
    wide: &'static str,
    /// With tiles of half the width.
    half: Half,
    leaving: Leaving,
}

/// What it takes to leave the products of a tile, 128 sums of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaving {
    /// Instructions of a thread, as `tests/compiled.rs` counts them in the compiled code.
    pub(super) instructions: usize,
    /// Tensors in bf16 of which a tile goes through shared memory, in or out.
    pub(super) tensors: usize,
    /// Stores of a thread that leaves f32 instead.
    pub(super) stores: usize,
}

/// Tiles of half the width, and who makes them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Half {
    /// Both warpgroups together.
    Narrow(&'static str),
    /// Each in turn.
    PingPong(&'static str),
}

impl Kernels {
    pub(super) const fn new(
        portable: [&'static str; 2],
        wide: &'static str,
        half: Half,
        leaving: Leaving,
    ) -> Self {
        Kernels { portable, hopper: Some(Hopper { wide, half, leaving }) }
    }
}

/// The kernels for Hopper, and the instructions of a thread that leaves a tile of theirs.
pub(super) fn leaving(kernels: Kernels) -> impl Iterator<Item = (&'static str, usize)> {
    kernels.hopper.into_iter().flat_map(Hopper::tiles).map(|(kernel, tile)| match tile {
        Tile::Narrow(Leaving { instructions, .. }) => (kernel, instructions / 2),
        Tile::Wide(Leaving { instructions, .. }) | Tile::PingPong(Leaving { instructions, .. }) => {
            (kernel, instructions)
        }
        Tile::Large | Tile::Small => unreachable!("not for Hopper"),
    })
}

impl Hopper {
    fn tiles(self) -> [(&'static str, Tile); 2] {
        let Hopper { wide, half, leaving } = self;
        let half = match half {
            Half::Narrow(kernel) => (kernel, Tile::Narrow(leaving)),
            Half::PingPong(kernel) => (kernel, Tile::PingPong(leaving)),
        };
        [(wide, Tile::Wide(leaving)), half]
    }
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

/// The tiles of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tile {
    Large,
    Small,
    Wide(Leaving),
    Narrow(Leaving),
    PingPong(Leaving),
}

/// Blocks of a kernel for Hopper that share their columns of c: a cluster.
const CLUSTER: usize = 2;

impl Tile {
    /// Rows and columns of c.
    fn shape(self) -> [usize; 2] {
        match self {
            Tile::Large | Tile::Narrow(_) | Tile::PingPong(_) => [128, 128],
            Tile::Small => [64, 64],
            Tile::Wide(_) => [128, 256],
        }
    }
    /// Blocks that take tiles together.
    fn cluster(self) -> usize {
        if self.hopper() { CLUSTER } else { 1 }
    }
    fn hopper(self) -> bool {
        !matches!(self, Tile::Large | Tile::Small)
    }
    /// How many c has; for a cluster those that one of its blocks takes.
    fn count(self, shape: [usize; 2]) -> usize {
        let [rows, cols] = self.shape();
        shape[0].div_ceil(rows * self.cluster()) * shape[1].div_ceil(cols)
    }
    /// Bytes of shared memory: two operands in blocks of 64 bf16, so many stages of them; for Hopper besides those the
    /// 64 KiB by which tiles are left in bf16, eight columns of ones, two barriers for a stage and two more.
    fn shared(self) -> usize {
        let boxes = |Leaving { tensors, .. }: Leaving| if tensors > 0 { 64 << 10 } else { 0 };
        let (stages, more) = match self {
            Tile::Large => (3, 0),
            Tile::Small => (4, 0),
            Tile::Wide(leaving) => (if leaving.tensors > 0 { 3 } else { 4 }, boxes(leaving)),
            Tile::Narrow(leaving) => (6, boxes(leaving)),
            Tile::PingPong(leaving) => (5, boxes(leaving)),
        };
        let [rows, cols] = self.shape();
        stages * (rows + cols) * 128 + if self.hopper() { more + 8 * 128 + (stages + 1) * 16 } else { 0 }
    }
    /// Tiles, or those of clusters, that are computed at a time.
    fn at_a_time(self, processors: usize) -> usize {
        if self.hopper() { processors / CLUSTER } else { 2 * processors }
    }
    /// Cycles that all of `tiles` tiles take, each with a sum of `blocks` blocks, on a card with so many processors.
    /// That is a model, not measured: it follows a simulation of the compiled code within a tenth. A processor
    /// multiplies 4096 FLOP a cycle (mma.sync 63 % of it), moves 128 bytes of shared memory, and issues 4 instructions;
    /// what that allows tiles of Hopper stands in kernels/gemm_sm90.cuh, and they take 2 to 5 % more. While one of those
    /// that are made together is left, nothing is multiplied; a ping-pong's is left meanwhile, but for the last. Row sums
    /// of weight gradients, 23 % more where a tile makes them, are left out, and their splits were not simulated. To begin
    /// and leave a tile on other cards, two at a time, is counted as 8 blocks.
    fn cycles(self, tiles: usize, blocks: usize, processors: usize) -> usize {
        let waves = tiles.div_ceil(self.at_a_time(processors));
        // What 64 rows and 256 columns take, or 128 and 128.
        let alone = |Leaving { instructions, tensors, stores }| instructions + 325 * tensors + 35 * stores;
        match self {
            Tile::Large | Tile::Small => waves * 1600 * (blocks + 8),
            Tile::Wide(leaving) => waves * (1075 * blocks + 2 * alone(leaving)),
            Tile::Narrow(leaving) => waves * (660 * blocks + alone(leaving)),
            Tile::PingPong(leaving) => {
                let shared = 650 * blocks + 600 * leaving.tensors;
                waves * shared.max((650 * blocks + alone(leaving)) / 2) + alone(leaving)
            }
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
    cycles: usize,
}

impl Tiling {
    /// Elements of a block of the sum, of which a split takes a whole number.
    const BLOCK: usize = 64;

    /// Of a whole sum. A processor computes twice as fast in large tiles, but these take rows of whole vectors; and
    /// where more than half of the processors would get none, small ones are done sooner.
    pub(super) fn of(card: Card, kernels: Kernels, product: Product) -> Self {
        let small = !product.in_vectors || 2 * Tile::Large.count(product.shape) < card.processors;
        let tiles = match kernels.hopper {
            _ if small => vec![(kernels.portable[1], Tile::Small)],
            Some(hopper) if card.hopper => hopper.tiles().to_vec(),
            _ => vec![(kernels.portable[0], Tile::Large)],
        };
        Self::soonest(tiles.into_iter().map(|(kernel, tile)| Self::split(kernel, tile, product, 1, card)))
    }
    /// Of a sum over many rows to a small c, a weight gradient, which is split until it fills the card.
    pub(super) fn of_split(card: Card, kernels: Kernels, product: Product) -> Self {
        let tiles = match (product.in_vectors, kernels.hopper) {
            (true, Some(hopper)) if card.hopper => hopper.tiles().to_vec(),
            (true, _) => vec![(kernels.portable[0], Tile::Large)],
            (false, _) => vec![(kernels.portable[1], Tile::Small)],
        };
        Self::soonest(
            tiles.into_iter().flat_map(|(kernel, tile)| Self::splits_of(kernel, tile, product, card)),
        )
    }
    fn splits_of(
        kernel: &'static str,
        tile: Tile,
        product: Product,
        card: Card,
    ) -> impl Iterator<Item = Self> {
        const MOST: usize = 64;
        let splits = 1..=product.sum.div_ceil(Self::BLOCK).clamp(1, MOST);
        splits.map(move |splits| Self::split(kernel, tile, product, splits, card))
    }
    fn soonest(tilings: impl Iterator<Item = Self>) -> Self {
        tilings.min_by_key(|tiling| tiling.cycles).expect("there is a tile")
    }
    /// In so many splits, or fewer where these are whole blocks. To add up one more is to read it once more, 2300 bytes a
    /// cycle.
    fn split(
        kernel: &'static str,
        tile: Tile,
        Product { shape, sum, .. }: Product,
        splits: usize,
        card: Card,
    ) -> Self {
        let blocks = sum.div_ceil(Self::BLOCK).div_ceil(splits).max(1);
        let (each, tiles) = (blocks * Self::BLOCK, tile.count(shape));
        let splits = sum.div_ceil(each).max(1);
        let adding = (splits - 1) * shape[0] * shape[1] * size_of::<f32>() / 2300;
        let cycles = tile.cycles(tiles * splits, blocks, card.processors) + adding;
        Tiling { kernel, tile, tiles, each, splits, cycles }
    }
    /// Cycles that the kernel takes, by the model of [`Tile::cycles`].
    pub(super) fn cycles(&self) -> usize {
        self.cycles
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
        self.operand(s, b, self.tile.shape()[1] / self.tile.cluster())
    }
    /// A tensor `[rows, cols]` that is left, or read beside the operands.
    pub(super) fn beside(&self, s: &Stream, at: Ptr, [rows, cols]: [usize; 2]) -> Result<Arg> {
        if !self.tile.hopper() {
            return Ok(at.into());
        }
        s.tensor_map(&Boxed { at: at.0, shape: vec![1, rows, cols], of_box: [64; 2] })
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
            ([CLUSTER * (tiles * splits).min(tile.at_a_time(s.card().processors)), 1, 1], 384)
        } else {
            ([tiles, splits, 1], 128)
        };
        s.launch(Launch { kernel, grid, block, shared: tile.shared() }, args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Leaving = Leaving { instructions: 270, tensors: 1, stores: 0 };
    const REAL: Leaving = Leaving { instructions: 335, tensors: 0, stores: 64 };
    const WIDE: Tile = Tile::Wide(REAL);
    const NARROW: Tile = Tile::Narrow(REAL);
    const TILES: [Tile; 6] =
        [Tile::Large, Tile::Small, Tile::Wide(PLAIN), WIDE, NARROW, Tile::PingPong(PLAIN)];

    fn split(tile: Tile, shape: [usize; 2], sum: usize) -> Tiling {
        let product = Product { shape, sum, in_vectors: true };
        Tiling::soonest(Tiling::splits_of("", tile, product, Card::H200))
    }

    /// The weight gradients of a block of width 768 on a card of 132 processors: how full its waves are.
    #[test]
    fn splits_fill_a_card() {
        const ROWS: usize = 64 * 256;
        for tile in [Tile::Large, WIDE, NARROW] {
            for [n, k] in [[768, 768], [2304, 768], [3072, 768], [768, 3072]] {
                let tiling = split(tile, [n, k], ROWS);
                let places = tile.at_a_time(Card::H200.processors);
                let waves = (tiling.tiles * tiling.splits).div_ceil(places);
                let full = (tiling.tiles * ROWS) as f64 / (waves * tiling.each * places) as f64;
                assert!(full > 0.8, "{tile:?} {n} x {k}: {waves} waves, {:.0} % full", 100.0 * full);
            }
        }
    }

    /// What the README says of a product of 8192³.
    #[test]
    fn a_large_product_is_expected_at_91_percent_of_the_tensor_cores() {
        let kernels = Kernels::new([""; 2], "", Half::PingPong(""), PLAIN);
        let product = Product { shape: [8192, 8192], sum: 8192, in_vectors: true };
        let cycles = Tiling::of(Card::H200, kernels, product).cycles();
        let least = 2 * 8192_usize.pow(3) / (Card::H200.processors * Card::FLOP_PER_CYCLE);
        assert_eq!(100 * least / cycles, 91);
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
            let blocks = if tile.hopper() { 1 } else { 2 };
            assert!(blocks * (tile.shared() + 1024) <= 228 << 10, "{tile:?}: {}", tile.shared());
        }
    }
}
