//! Changes of intensity inside the brain: gamma, then shading, then contrast, brightness and noise. They never push a
//! voxel down to the background, and a voxel that is no number stays so: the loss then names its scan.
use crate::image::BACKGROUND;
use crate::machine::Real;
use crate::machine::philox::{STREAM, blocks, quick_normal};
use multiversion::multiversion;

/// How many numbers a [`Shading`] is.
pub const SHADING: usize = 13;

/// How the brain's intensities are changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shading<F> {
    /// Bends the grey scale, from the background to as far above 0.
    pub exponent: F,
    /// Factor on the intensities.
    pub contrast: F,
    /// Addition to the intensities.
    pub brightness: F,
    /// Standard deviation of white noise.
    pub noise: F,
    /// The polynomial of x, y, z, x², y², z², xy, xz, yz, each coordinate from -1 to 1 over the grid, that the signal
    /// above the background is multiplied with 1 plus.
    pub bias: [F; 9],
}

impl Shading<f32> {
    /// No change: the operation leaves such a volume's intensities alone, to the bit.
    pub const NONE: Self =
        Shading { exponent: 1.0, contrast: 1.0, brightness: 0.0, noise: 0.0, bias: [0.0; 9] };
}

impl<F: Real> Shading<F> {
    /// As a row of the operation's input.
    pub fn row(self) -> [F; SHADING] {
        let [a, b, c, d, e, f, g, h, i] = self.bias;
        [self.exponent, self.contrast, self.brightness, self.noise, a, b, c, d, e, f, g, h, i]
    }
    /// The inverse of [`row`](Self::row).
    pub(super) fn of_row(row: &[F]) -> Self {
        let &[exponent, contrast, brightness, noise, ref bias @ ..] = row else { panic!("a short row") };
        Shading { exponent, contrast, brightness, noise, bias: bias.try_into().expect("nine of bias") }
    }
}

/// Brain values stay above the background by this much, which `f16` and `bf16` still tell apart.
const FLOOR: f32 = BACKGROUND + 0.0625;
/// The grey scale that the exponent bends: from the background to as far above 0.
const SPAN: f32 = -2.0 * BACKGROUND;
/// The bent scale is straight between as many points.
const STEPS: usize = 256;
/// Voxels whose noise is made together.
const PIECE: usize = 64;

/// Shades a volume in place. Voxel i takes the noise of word i of the stream that begins at `stream`.
#[multiversion(targets = "simd")]
pub(super) fn shade<F: Real>(shading: Shading<F>, stream: [u32; STREAM], grid: [usize; 3], volume: &mut [F]) {
    let background = F::of(BACKGROUND.into());
    let curve = curve(shading.exponent);
    let [cx, cy, cz, cxx, cyy, czz, cxy, cxz, cyz] = shading.bias;
    for (row, line) in volume.chunks_exact_mut(grid[2]).enumerate() {
        let brain = |v: &F| *v != background;
        let Some(first) = line.iter().position(brain) else { continue };
        let end = 1 + line.iter().rposition(brain).unwrap_or(first);
        let x = unit(row / grid[1], grid[0]);
        let y = unit(row % grid[1], grid[1]);
        // 1 plus the polynomial is b0 + b1 z + czz z².
        let b0 =
            cxy.mul_add(x * y, cyy.mul_add(y * y, cxx.mul_add(x * x, cy.mul_add(y, cx.mul_add(x, F::ONE)))));
        let b1 = cyz.mul_add(y, cxz.mul_add(x, cz));
        let mut z = first;
        while z < end {
            let at = row * grid[2] + z;
            let skip = at % 4;
            let normals = if shading.noise > F::ZERO { normals(stream, at / 4) } else { [0.0; PIECE] };
            let piece = &mut line[z..end.min(z + PIECE - skip)];
            for (k, (value, normal)) in piece.iter_mut().zip(&normals[skip..]).enumerate() {
                let u = unit(z + k, grid[2]);
                let bias = czz.mul_add(u, b1).mul_add(u, b0);
                let scaled = (*value - background) * F::of((STEPS as f32 / SPAN).into());
                let most = F::of(STEPS as f64);
                let scaled = if scaled < most { scaled } else { most };
                let cell = scaled.whole();
                let f = scaled - F::of(cell.into());
                let [low, high] = [cell, cell + 1].map(|i| curve[i as usize % curve.len()]);
                let shaded = (high - low).mul_add(f, low).mul_add(bias, background);
                let noisy = shading.noise.mul_add(F::of((*normal).into()), shading.brightness);
                let made = clamp(shaded.mul_add(shading.contrast, noisy));
                *value = if *value > background { made } else { *value };
            }
            z += PIECE - skip;
        }
    }
}

/// The coordinate of voxel `i` of `n`, from -1 to 1 at the ends of the grid.
#[inline(always)]
fn unit<F: Real>(i: usize, n: usize) -> F {
    let step = F::of(2.0) / F::of(n as f64);
    step.mul_add(F::of(i as i32 as f64), F::of(0.5) * step - F::ONE)
}

#[inline(always)]
fn clamp<F: Real>(v: F) -> F {
    let [low, high] = [FLOOR, -BACKGROUND].map(|v| F::of(v.into()));
    let v = if v < low { low } else { v };
    if v > high { high } else { v }
}

/// The bent grey scale at its points, then one more that nothing weighs; as many as make a remainder cheap.
fn curve<F: Real>(exponent: F) -> [F; 2 * STEPS] {
    let bent = |i: usize| f64::from(SPAN) * (i as f64 / STEPS as f64).powf(exponent.f64());
    std::array::from_fn(|i| if i <= STEPS { F::of(bent(i)) } else { F::ZERO })
}

/// A normal number for each of the voxels of as many blocks.
#[inline(always)]
fn normals(stream: [u32; STREAM], block: usize) -> [f32; PIECE] {
    let words = blocks::<{ PIECE / 4 }>(stream, block as u32);
    std::array::from_fn(|i| quick_normal(words[i % 4][i / 4]))
}
