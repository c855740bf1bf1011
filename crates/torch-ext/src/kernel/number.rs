use std::ops::{Add, AddAssign, Div, Mul, Sub};

use half::bf16;

use super::Element;

/// What a kernel computes in: float32 or float64.
pub trait Real:
    Element
    + Default
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
{
    /// The nearest number.
    fn from_f64(value: f64) -> Self;
    /// The number itself.
    fn to_f64(self) -> f64;
    /// Its square root.
    fn sqrt(self) -> Self;
}

macro_rules! real {
    ($($type:ty),*) => {
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
            }
        )*
    };
}

real!(f32, f64);

/// An element that is stored in one dtype and computed with in `A`: itself, or bfloat16 in float32.
pub trait Stored<A>: Element {
    /// The element as it is computed with; exact.
    fn widen(self) -> A;
    /// The nearest element; ties to even, and NaN stays NaN.
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
        // `bf16::from_f32` without its branches, which would keep a loop from being vectorised. A NaN
        // whose upper half overflows is replaced, so the sum may wrap.
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        let bits = if value.is_nan() { quiet } else { rounded };
        Self::from_bits(bits as u16)
    }
}

/// Partial sums of a row, in which vector instructions add it up.
pub const LANES: usize = 16;

/// The sum of partial sums, in float64: halves onto each other, as a processor's vectors are summed.
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

/// Numbers for a kernel to keep in the cache. They begin where a cache line does, as tensors do, so
/// that no vector lies in two.
#[derive(Debug)]
pub struct Row<A> {
    numbers: Vec<A>,
    start: usize,
    width: usize,
}

impl<A: Real> Row<A> {
    /// `width` times `value`.
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
