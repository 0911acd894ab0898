//! The two precisions every operation is defined in: `f64`, the reference, and `f32`, the product.
use std::fmt::{Debug, Display, LowerExp};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// A floating-point type that operations compute in.
///
/// Everything is `#[inline(always)]` and free of library calls in `f32`, so that the loops of the operations,
/// compiled once per instruction set by `multiversion`, become vector code.
pub trait Real:
    bytemuck::Pod
    + Send
    + Sync
    + Debug
    + Display
    + LowerExp
    + Default
    + PartialOrd
    + Sum
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + 'static
{
    /// The type's name, for tables.
    const NAME: &'static str;
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Minus infinity: the running maximum of nothing.
    const LOWEST: Self;
    /// The nearest value to `x`.
    fn of(x: f64) -> Self;
    /// The same value in `f64`.
    fn f64(self) -> f64;
    /// `self · a + b`, rounded once: one instruction where the processor has it, as the versions of `multiversion` do.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// The larger of two numbers.
    fn max(self, other: Self) -> Self;
    /// Its whole part, cut off towards zero.
    fn whole(self) -> i32;
    /// Whether it is neither infinite nor NaN.
    fn is_finite(self) -> bool;
    /// eˣ.
    fn exp(self) -> Self;
    /// The error function.
    fn erf(self) -> Self;
}

impl Real for f64 {
    const NAME: &'static str = "f64";
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const LOWEST: Self = f64::NEG_INFINITY;
    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        f64::mul_add(self, a, b)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f64::abs(self)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        f64::max(self, other)
    }
    #[inline(always)]
    fn whole(self) -> i32 {
        self as i32
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        f64::is_finite(self)
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
}

impl Real for f32 {
    const NAME: &'static str = "f32";
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const LOWEST: Self = f32::NEG_INFINITY;
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        self.into()
    }
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        f32::mul_add(self, a, b)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f32::abs(self)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
    #[inline(always)]
    fn whole(self) -> i32 {
        self as i32
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }
    /// Range reduction by powers of two and a degree-6 polynomial (coefficients of Cephes' `expf`); at most
    /// 1.2e-7 relative from the true value between the clamps.
    #[inline(always)]
    fn exp(self) -> Self {
        const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
        let x = if self > 88.3 { 88.3 } else { self };
        let x = if x < -87.3 { -87.3 } else { x };
        let k = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0; // to the nearest integer
        let r = (-k).mul_add(0.693_359_4, x);
        let r = k.mul_add(2.121_944_4e-4, r);
        let p = EXP.iter().fold(0.0_f32, |p, c| p.mul_add(r, *c));
        let y = p.mul_add(r * r, r) + 1.0;
        let scaled = f32::from_bits((y.to_bits() as i32).wrapping_add((k as i32) << 23) as u32);
        if self < -87.3 { 0.0 } else { scaled }
    }
    /// `1 - p(t) exp(-x²)` with `t = 1 / (1 + 0.39 x)`, the form of Hastings (1955) with a polynomial fitted to
    /// 8.3e-9; with rounding at most 2.6e-7 from the true value. One exponential, which the slope of GELU needs as well.
    #[inline(always)]
    fn erf(self) -> Self {
        const P: [f32; 6] =
            [-0.227_537_28, 0.886_665, -0.635_401_3, 0.649_560_2, 0.091_388_085, 0.235_325_27];
        let t = 1.0 / Real::abs(self).mul_add(0.39, 1.0);
        let p = P.iter().fold(0.0_f32, |p, c| p.mul_add(t, *c)) * t;
        let erf = 1.0 - p * Real::exp(-(self * self));
        if self < 0.0 { -erf } else { erf }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> impl Iterator<Item = f32> {
        (-12_000..12_000).map(|i| i as f32 * 1e-3)
    }

    #[test]
    fn exp_f32_is_close_to_the_true_value() {
        let worst = grid().map(|x| (Real::exp(x).f64() / f64::from(x).exp() - 1.0).abs()).fold(0.0, f64::max);
        assert!(worst < 2e-7, "worst relative error {worst:e}");
        assert_eq!(Real::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Real::exp(0.0_f32), 1.0);
    }

    #[test]
    fn erf_f32_is_close_to_the_true_value() {
        let worst = grid().map(|x| (Real::erf(x).f64() - libm::erf(x.into())).abs()).fold(0.0, f64::max);
        assert!(worst < 3e-7, "worst error {worst:e}");
    }
}
