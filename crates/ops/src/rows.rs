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
    if x < A::from_f64(-87.0) {
        A::default()
    } else {
        sigmoid
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
