//! What a block consists of as one operation each: a norm, `(1 + scale)` and shift in one pass over the
//! tokens; gated residuals; attention with its heads; norm and rotation of queries and keys; GELU and SwiGLU;
//! and the gradients of each.

mod attention;
mod gelu;
mod modulation;
mod norm_rotate;
mod swiglu;
#[cfg(test)]
mod tests;
mod unary;

use torch_ext::kernel::{LANES, Operand, Real, Stored, sum_lanes};

pub(crate) use self::attention::{attention, attention_of_heads};
pub(crate) use self::gelu::gelu;
pub(crate) use self::modulation::{Norm, gate, norm_modulate};
pub(crate) use self::norm_rotate::{Rotations, norm_rotate};
pub(crate) use self::swiglu::swiglu;

/// An element that is computed with in the dtype that its products are summed up in.
trait Number: Operand + Stored<Self::Sum> {}

impl<E: Operand + Stored<E::Sum>> Number for E {}

/// `values` cut into the parts of each image, each image of `len` values.
fn cut<T>(values: &[T], len: usize, part: usize) -> impl Iterator<Item = &[T]> {
    values.chunks(len).flat_map(move |image| image.chunks(part))
}

fn cut_mut<T>(values: &mut [T], len: usize, part: usize) -> impl Iterator<Item = &mut [T]> {
    values
        .chunks_mut(len)
        .flat_map(move |image| image.chunks_mut(part))
}

/// `1 / (1 + e^-x)`, and 0 where the exponential is beyond its range: times a power of `x` that it should
/// outweigh, what it is there would count.
#[inline(always)]
fn sigmoid<A: Real>(x: A) -> A {
    let one = A::from_f64(1.0);
    let sigmoid = one / (one + (A::default() - x).exp());
    if x < A::from_f64(-87.0) {
        A::default()
    } else {
        sigmoid
    }
}

/// The sum of a function of each element.
#[inline(always)]
fn sum<A: Real>(row: &[A], term: impl Fn(A) -> A) -> f64 {
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

/// The sum of the products of two rows' elements.
#[inline(always)]
fn product<A: Real>(left: &[A], right: &[A]) -> f64 {
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
