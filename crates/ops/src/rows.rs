//! What several CPU kernels share: their element types, the division of tokens into parts, and sums over rows.

use torch_ext::kernel::{LANES, Real, Stored, sum_lanes};

use crate::matrix::Operand;

/// An element type of kernels that compute in the dtype in which its products are summed.
pub(crate) trait KernelElement: Operand + Stored<Self::Sum> {}

impl<E: Operand + Stored<E::Sum>> KernelElement for E {}

/// Divides `values` into images of `len` values, and each image into parts of `part` values.
pub(crate) fn image_parts<T>(values: &[T], len: usize, part: usize) -> impl Iterator<Item = &[T]> {
    values.chunks(len).flat_map(move |image| image.chunks(part))
}

/// As [`image_parts`], for writing.
pub(crate) fn image_parts_mut<T>(
    values: &mut [T],
    len: usize,
    part: usize,
) -> impl Iterator<Item = &mut [T]> {
    values
        .chunks_mut(len)
        .flat_map(move |image| image.chunks_mut(part))
}

/// `1 / (1 + e^-x)`, and exactly 0 for `x` below -87, where the exponential is clamped: the clamped value,
/// multiplied by a power of `x`, would not be negligible.
#[inline(always)]
pub(crate) fn sigmoid<A: Real>(x: A) -> A {
    let one = A::from_f64(1.0);
    let sigmoid = one / (one + (A::default() - x).exp());
    // A product and not a branch: the compiler would skip the exponential in the other case, and no longer vectorise the
    // loop. NaN is not below the limit.
    let is_clamped = x < A::from_f64(-87.0);
    sigmoid * A::from_f64(f64::from(u8::from(!is_clamped)))
}

/// Computes two rows element by element from `N` others of the same length.
///
/// Blocks are computed in local memory. The compiler does not know that the rows do not overlap, and checks that for one
/// result, but not for two: it would not vectorise the loop, which then takes four times as long.
#[inline(always)]
pub(crate) fn map_to_two<const N: usize, I: Copy, O: Copy + Default>(
    inputs: [&[I]; N],
    [first, second]: [&mut [O]; 2],
    f: impl Fn([I; N]) -> [O; 2],
) {
    let parts = inputs.map(|row| row.as_chunks::<LANES>());
    let (first, first_rest) = first.as_chunks_mut::<LANES>();
    let (second, second_rest) = second.as_chunks_mut::<LANES>();
    for (index, (first, second)) in first.iter_mut().zip(second).enumerate() {
        let blocks = parts.map(|(blocks, _)| &blocks[index]);
        let mut left = [O::default(); LANES];
        let mut right = [O::default(); LANES];
        for lane in 0..LANES {
            [left[lane], right[lane]] = f(blocks.map(|block| block[lane]));
        }
        *first = left;
        *second = right;
    }
    for (index, (first, second)) in first_rest.iter_mut().zip(second_rest).enumerate() {
        [*first, *second] = f(parts.map(|(_, rest)| rest[index]));
    }
}

/// The sum of `term` over the elements of a row.
#[inline(always)]
pub(crate) fn sum<A: Real>(row: &[A], term: impl Fn(A) -> A) -> f64 {
    let (pieces, rest) = row.as_chunks::<LANES>();
    let mut lanes = [A::default(); LANES];
    for piece in pieces {
        for lane in 0..LANES {
            lanes[lane] += term(piece[lane]);
        }
    }
    for (lane, &element) in lanes.iter_mut().zip(rest) {
        *lane += term(element);
    }
    sum_lanes(lanes)
}

/// The dot product of two rows.
#[inline(always)]
pub(crate) fn dot<A: Real>(left: &[A], right: &[A]) -> f64 {
    let ((left, left_rest), (right, right_rest)) =
        (left.as_chunks::<LANES>(), right.as_chunks::<LANES>());
    let mut lanes = [A::default(); LANES];
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            lanes[lane] += left[lane] * right[lane];
        }
    }
    for ((lane, &left), &right) in lanes.iter_mut().zip(left_rest).zip(right_rest) {
        *lane += left * right;
    }
    sum_lanes(lanes)
}
