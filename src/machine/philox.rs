//! Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011). A pure function of (seed, purpose, step, sample), so a resumed run, another machine or another
//! order of work draws the same masks, crops and drop-paths.

/// What random numbers are drawn for; each purpose has a stream of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Purpose {
    /// A model's first weights.
    Init,
    /// Which patches are masked.
    Mask,
    /// The order in which samples are visited.
    Shuffle,
    /// Flips, affine maps and intensities.
    Augment,
    /// Which residual branches are dropped.
    DropPath,
    /// Who goes into which part of a split.
    Split,
    /// Resampled statistics.
    Bootstrap,
    /// Synthetic anatomy.
    Phantom,
    /// Values for checks and benches.
    Test,
    /// White noise on a volume.
    Noise,
    /// Which modalities are left out.
    Modality,
    /// How a scan is made worse.
    Distort,
    /// Who is drawn into an arm of a study.
    Draw,
}

/// The ten-round bijection: key and counter in, four random words out.
pub const fn philox4x32_10(mut key: [u32; 2], mut c: [u32; 4]) -> [u32; 4] {
    let mut i = 0;
    while i < 10 {
        c = round(key, c);
        key = next(key);
        i += 1;
    }
    c
}

#[inline(always)]
const fn round(key: [u32; 2], c: [u32; 4]) -> [u32; 4] {
    let (p0, p1) = (0xD251_1F53_u64 * c[0] as u64, 0xCD9E_8D57_u64 * c[2] as u64);
    [(p1 >> 32) as u32 ^ c[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ key[1], p0 as u32]
}

#[inline(always)]
const fn next(key: [u32; 2]) -> [u32; 2] {
    [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)]
}

/// Blocks `from` to `from + N` of the stream that begins at `at`, by word: `[w][i]` is word `w` of block `from + i`.
/// Its loops become vector code in a caller that `multiversion` compiles.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "four rows are walked side by side")]
pub fn blocks<const N: usize>(at: [u32; STREAM], from: u32) -> [[u32; N]; 4] {
    let [k0, k1, c0, c1, c2, c3] = at;
    let mut key = [k0, k1];
    let count = std::array::from_fn(|i| c0.wrapping_add(from).wrapping_add(i as u32));
    let mut blocks = [count, [c1; N], [c2; N], [c3; N]];
    for _ in 0..10 {
        let [first, second, third, fourth] = &mut blocks;
        for (((a, b), c), d) in first.iter_mut().zip(second).zip(third).zip(fourth) {
            [*a, *b, *c, *d] = round(key, [*a, *b, *c, *d]);
        }
        key = next(key);
    }
    blocks
}

/// A standard normal to three figures, within ±3.45, where a million are needed and their tails are not: the four
/// bytes of a word summed, whose variance is 4 (256² - 1) / 12.
#[inline(always)]
pub fn quick_normal(word: u32) -> f32 {
    let pairs = (word & 0x00FF_00FF) + (word >> 8 & 0x00FF_00FF);
    let sum = (pairs & 0xFFFF) + (pairs >> 16);
    (sum as i32 as f32 - 510.0) / 147.8
}

/// How many words say where a stream begins: two of key, then four of counter, the first of which counts blocks.
pub const STREAM: usize = 6;

/// A stream of random numbers; two streams with different coordinates are independent.
#[derive(Clone, Debug)]
pub struct Philox {
    key: [u32; 2],
    counter: [u32; 4],
    words: [u32; 4],
    used: usize,
}

impl Philox {
    /// The stream of `seed` for `purpose` at (`step`, `sample`).
    pub fn new(seed: u64, purpose: Purpose, step: u64, sample: u32) -> Self {
        let key = [seed as u32, (seed >> 32) as u32 ^ (purpose as u32).wrapping_mul(0x9E37_79B9)];
        let counter = [0, step as u32, (step >> 32) as u32, sample];
        Philox { key, counter, words: [0; 4], used: 4 }
    }
    /// Where the stream begins, for operations that draw from it in parallel: its word `i` is word `i % 4` of block
    /// `i / 4`.
    pub fn start(&self) -> [u32; STREAM] {
        let ([k0, k1], [_, c1, c2, c3]) = (self.key, self.counter);
        [k0, k1, 0, c1, c2, c3]
    }
    /// The stream that begins at `start`.
    ///
    /// # Panics
    /// When `start` is not [`STREAM`] words.
    pub fn from_start(start: &[u32]) -> Self {
        let &[k0, k1, c0, c1, c2, c3] = start else { panic!("{STREAM} words, not {}", start.len()) };
        Philox { key: [k0, k1], counter: [c0, c1, c2, c3], words: [0; 4], used: 4 }
    }
    /// The next 32 random bits.
    pub fn word(&mut self) -> u32 {
        if self.used == 4 {
            self.words = philox4x32_10(self.key, self.counter);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }
    /// Uniform in [0, 1), a multiple of 2⁻²⁴ and so exact in `f32`.
    pub fn uniform(&mut self) -> f32 {
        (self.word() >> 8) as f32 * (1.0 / 16_777_216.0)
    }
    /// Uniform in [`low`, `high`).
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.uniform()
    }
    /// Standard normal, by Box and Muller in `f64`.
    pub fn normal(&mut self) -> f32 {
        let (u, v) = (1.0 - f64::from(self.uniform()), f64::from(self.uniform()));
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }
    /// Uniform in 0..`n` (the multiply-shift map; its bias is below n / 2⁶⁴).
    pub fn below(&mut self, n: usize) -> usize {
        let wide = u64::from(self.word()) << 32 | u64::from(self.word());
        ((u128::from(wide) * n as u128) >> 64) as usize
    }
    /// Puts `items` into random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// Lets everything of `rand` draw from a stream. What must be the same on every machine and in every version draws by
/// the methods above instead, whose bits are ours.
impl rand::TryRng for Philox {
    type Error = std::convert::Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(self.word())
    }
    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(u64::from(self.word()) | u64::from(self.word()) << 32)
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        bytes
            .chunks_mut(4)
            .for_each(|chunk| chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    #[test]
    fn rand_draws_from_a_stream() {
        let mut r = Philox::new(1, Purpose::Test, 0, 0);
        let rolls: Vec<u32> = (0..6000).map(|_| r.random_range(1..=6)).collect();
        assert!((1..=6).all(|face| (850..1150).contains(&rolls.iter().filter(|&&r| r == face).count())));
    }

    /// The three vectors that come with Random123.
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32_10([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32_10([u32::MAX; 2], [u32::MAX; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32_10([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn normal_has_unit_moments() {
        let mut r = Philox::new(1, Purpose::Test, 0, 0);
        let x: Vec<f64> = (0..100_000).map(|_| f64::from(r.normal())).collect();
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        assert!(mean.abs() < 0.015 && (var - 1.0).abs() < 0.02, "mean {mean}, variance {var}");
    }

    #[test]
    fn blocks_are_those_of_the_stream() {
        let mut r = Philox::new(7, Purpose::Test, 1 << 33, 5);
        let start = r.start();
        assert_eq!(Philox::from_start(&start).word(), r.clone().word());
        let [first, later] = [0, 8].map(|from| blocks::<8>(start, from));
        let words: Vec<u32> = [first, later].iter().flat_map(|b| (0..32).map(|i| b[i % 4][i / 4])).collect();
        assert_eq!(words, (0..64).map(|_| r.word()).collect::<Vec<u32>>());
    }

    #[test]
    fn quick_normals_have_unit_moments() {
        let mut r = Philox::new(1, Purpose::Test, 0, 0);
        let x: Vec<f64> = (0..100_000).map(|_| quick_normal(r.word()).into()).collect();
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        assert!(mean.abs() < 0.015 && (var - 1.0).abs() < 0.02, "mean {mean}, variance {var}");
        assert!(quick_normal(u32::MAX) == -quick_normal(0) && (3.4..3.5).contains(&quick_normal(u32::MAX)));
    }

    #[test]
    fn streams_differ_in_every_coordinate() {
        let first = |seed, purpose, step, sample| Philox::new(seed, purpose, step, sample).word();
        let base = first(1, Purpose::Mask, 2, 3);
        assert_ne!(base, first(2, Purpose::Mask, 2, 3));
        assert_ne!(base, first(1, Purpose::Augment, 2, 3));
        assert_ne!(base, first(1, Purpose::Mask, 3, 3));
        assert_ne!(base, first(1, Purpose::Mask, 2, 4));
    }
}
