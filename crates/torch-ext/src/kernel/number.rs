//! Number types of kernels, and vectorisable functions on them.

use std::ops::{Add, AddAssign, Div, Mul, Sub};

use half::bf16;

use super::Element;

/// A type that kernels compute in: float32 or float64.
pub trait Real:
    Element
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
{
    /// The nearest number of this type.
    fn from_f64(value: f64) -> Self;
    /// The same number as float64.
    fn to_f64(self) -> f64;
    /// The square root.
    fn sqrt(self) -> Self;
    /// `self * a + b`, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// The exponential function. In float32, the error is at most two units in the last place, and arguments
    /// are clamped to [-87.3, 87.3]; NaN stays NaN.
    fn exp(self) -> Self;
}

macro_rules! real {
    ($($type:ty, $exp:path);*) => {
        $(
            impl Real for $type {
                #[inline(always)]
                fn from_f64(value: f64) -> Self {
                    value as Self
                }

                #[inline(always)]
                fn to_f64(self) -> f64 {
                    self.into()
                }

                #[inline(always)]
                fn sqrt(self) -> Self {
                    self.sqrt()
                }

                #[inline(always)]
                fn mul_add(self, a: Self, b: Self) -> Self {
                    self.mul_add(a, b)
                }

                #[inline(always)]
                fn exp(self) -> Self {
                    $exp(self)
                }
            }
        )*
    };
}

real!(f32, exp; f64, f64::exp);

/// The exponential function without calls or branches, so that loops of it are vectorised.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding this to a number of fewer than 22 bits leaves the nearest integer in the lowest bits.
    const TO_INTEGER: f32 = 12_582_912.0;
    /// ln(2) as the sum of two parts. The product of a small integer and the first part is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    /// `(e^r - 1 - r) / r^2` for `|r| <= ln(2) / 2`: the minimax polynomial of Cephes' `expf`.
    const POLYNOMIAL: [f32; 6] = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_6e-1,
        0.5,
    ];
    let x = x.clamp(-87.3, 87.3);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, TO_INTEGER);
    let whole = shifted - TO_INTEGER;
    let rest = whole.mul_add(-LN_2[1], whole.mul_add(-LN_2[0], x));
    let mut sum = POLYNOMIAL[0];
    for &factor in &POLYNOMIAL[1..] {
        sum = sum.mul_add(rest, factor);
    }
    let fraction = sum.mul_add(rest * rest, rest) + 1.0;
    // 2^whole: only the bits of the exponent are set, which has a bias of 127.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    fraction * power
}

/// An element type whose values are computed with in `A`: `A` itself, or bfloat16 with float32.
pub trait Stored<A>: Element {
    /// Converts the element to `A`, exactly.
    fn widen(self) -> A;
    /// Rounds to the nearest element, ties to even; NaN stays NaN.
    fn narrow(value: A) -> Self;
}

impl<A: Real> Stored<A> for A {
    #[inline(always)]
    fn widen(self) -> A {
        self
    }

    #[inline(always)]
    fn narrow(value: A) -> Self {
        value
    }
}

impl Stored<f32> for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        // `bf16::from_f32` without its branches, which prevent vectorisation. The addition may wrap for
        // some NaNs, whose result is replaced below.
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        let bits = if value.is_nan() { quiet } else { rounded };
        Self::from_bits(bits as u16)
    }
}

/// Number of partial sums with which vector instructions sum a row.
pub const LANES: usize = 16;

/// The sum of partial sums in float64, by repeatedly adding the upper half to the lower half.
#[inline(always)]
pub fn sum_lanes<A: Real>(lanes: [A; LANES]) -> f64 {
    let mut lanes = lanes.map(A::to_f64);
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Scratch memory for one row of numbers. It starts at a cache line, like tensors, so that no vector
/// crosses two lines.
#[derive(Debug)]
pub struct Row<A> {
    numbers: Vec<A>,
    start: usize,
    width: usize,
}

impl<A: Real> Row<A> {
    /// A row of `width` numbers, all equal to `value`.
    pub fn new(value: f64, width: usize) -> Self {
        const LINE: usize = 64;
        let numbers = vec![A::from_f64(value); width + LINE / size_of::<A>()];
        let start = numbers.as_ptr().align_offset(LINE);
        Self {
            numbers,
            start,
            width,
        }
    }

    /// The numbers.
    #[inline(always)]
    pub fn as_mut_slice(&mut self) -> &mut [A] {
        &mut self.numbers[self.start..][..self.width]
    }
}
