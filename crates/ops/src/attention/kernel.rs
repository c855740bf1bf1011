//! Attention of one head of one image. Scores are computed for a few rows at a time and never stored as a
//! whole. The backward pass recomputes the softmax from the stored logarithms of its sums.

// Indexing several rows with one lane index lets the compiler generate vector instructions.
#![allow(clippy::needless_range_loop)]

use torch_ext::kernel::{LANES, Real, Vectorised, sum_lanes, vectorised};

use crate::matrix::{Columns, Operand, Packed, Rows, Transposed, multiply};
use crate::rows::{KernelElement, map_to_two};

/// Number of rows of scores that are computed at once; even, since bfloat16 is multiplied in pairs. With 64, almost all
/// tiles of a product are whole.
const BLOCK: usize = 64;

/// Queries, keys and values of a head, `[T, d]` each.
#[derive(Clone, Copy)]
pub(super) struct Head<'a, E> {
    pub(super) q: Rows<'a, E>,
    pub(super) k: Rows<'a, E>,
    pub(super) v: Rows<'a, E>,
}

impl<E: KernelElement> Head<'_, E> {
    fn scale(&self) -> f64 {
        (self.q.width() as f64).powf(-0.5)
    }
}

/// Scratch memory for a head, reused for the next head.
#[derive(Default)]
pub(super) struct Scratch<E: Operand> {
    packed: [Packed<E>; 5],
    transposed: Transposed<E>,
    sums: [Vec<E::Sum>; 3],
    rows: [Vec<E>; 2],
}

/// `o = softmax(q k^T / sqrt(d)) v`.
pub(super) struct Forward<'a, E: Operand> {
    pub(super) head: Head<'a, E>,
    /// `[T, d]`.
    pub(super) o: Columns<'a, E>,
    /// For each query, the logarithm of the sum of its exponentials.
    pub(super) log_sums: &'a mut [E::Sum],
}

impl<E: KernelElement> Forward<'_, E> {
    pub(super) fn run(&mut self, scratch: &mut Scratch<E>) {
        let Head { q, k, v } = self.head;
        let (count, width) = (q.count(), q.width());
        let padded = count.next_multiple_of(E::UNIT);
        let [keys, values, ..] = &mut scratch.packed;
        keys.pack_columns(k);
        values.pack_rows(v);
        let [scores, mixed, totals] = &mut scratch.sums;
        let [weights, ..] = &mut scratch.rows;
        for first in (0..count).step_by(BLOCK) {
            let rows = BLOCK.min(count - first);
            let scores = resized(scores, rows * count);
            let weights = resized(weights, rows * padded);
            let mixed = resized(mixed, rows * width);
            let totals = resized(totals, rows);
            multiply(q.part(first, rows), keys, scores, false);
            vectorised(Softmax {
                scores,
                scale: self.head.scale(),
                weights,
                totals,
                log_sums: &mut self.log_sums[first..][..rows],
            });
            multiply(
                Rows::new(weights, padded, rows, padded),
                values,
                mixed,
                false,
            );
            for (row, (mixed, total)) in mixed.chunks_exact(width).zip(totals).enumerate() {
                let reciprocal = E::Sum::from_f64(1.0 / total.to_f64());
                for (o, &mixed) in self.o.row_mut(first + row).iter_mut().zip(mixed) {
                    *o = E::narrow(mixed * reciprocal);
                }
            }
        }
    }
}

/// Computes the gradients of queries, keys and values.
pub(super) struct Backward<'a, E: Operand> {
    pub(super) head: Head<'a, E>,
    pub(super) o: Rows<'a, E>,
    /// Gradient of `o`.
    pub(super) d_o: Rows<'a, E>,
    pub(super) log_sums: &'a [E::Sum],
    pub(super) dq: Columns<'a, E>,
    pub(super) dk: Columns<'a, E>,
    pub(super) dv: Columns<'a, E>,
}

impl<E: KernelElement> Backward<'_, E> {
    /// With `p = softmax(q k^T / sqrt(d))`: `dv = p^T do`, `ds = p (do v^T - sum(do o)) / sqrt(d)`,
    /// `dk = ds^T q`, `dq = ds k`. Scores are transposed, with one row per key, so that only the last product needs the
    /// transpose of what is computed.
    pub(super) fn run(&mut self, scratch: &mut Scratch<E>) {
        let Head { q, k, v } = self.head;
        let (count, width) = (q.count(), q.width());
        let padded = count.next_multiple_of(E::UNIT);
        let [q_columns, o_columns, q_rows, o_rows, k_rows] = &mut scratch.packed;
        q_columns.pack_columns(q);
        o_columns.pack_columns(self.d_o);
        q_rows.pack_rows(q);
        o_rows.pack_rows(self.d_o);
        let [scores, others, sums] = &mut scratch.sums;
        let sums = resized(sums, count + (count + BLOCK) * width);
        let (deltas, sums) = sums.split_at_mut(count);
        let (dq, sums) = sums.split_at_mut(count * width);
        for (row, delta) in deltas.iter_mut().enumerate() {
            *delta = vectorised(Product(self.o.row(row), self.d_o.row(row)));
        }
        let [weights, slopes] = &mut scratch.rows;
        for first in (0..count).step_by(BLOCK) {
            let rows = BLOCK.min(count - first);
            let scores = resized(scores, rows * count);
            let others = resized(others, rows * count);
            let weights = resized(weights, rows * padded);
            let slopes = resized(slopes, rows * padded);
            let keys = k.part(first, rows);
            multiply(keys, q_columns, scores, false);
            multiply(v.part(first, rows), o_columns, others, false);
            vectorised(SoftmaxBackward {
                scores,
                others,
                scale: self.head.scale(),
                log_sums: self.log_sums,
                deltas,
                weights,
                slopes,
            });
            let weights = Rows::new(weights, padded, rows, padded);
            let sums = &mut sums[..rows * width];
            multiply(weights, o_rows, sums, false);
            narrow_rows(sums, width, &mut self.dv, first);
            multiply(Rows::new(slopes, padded, rows, padded), q_rows, sums, false);
            narrow_rows(sums, width, &mut self.dk, first);
            let transposed = &mut scratch.transposed;
            transposed.pack(Rows::new(slopes, padded, rows, count));
            k_rows.pack_rows(keys);
            multiply(transposed.left(), k_rows, dq, first > 0);
        }
        narrow_rows(dq, width, &mut self.dq, 0);
    }
}

/// The first `len` elements, after extending `values` if needed.
fn resized<T: Clone + Default>(values: &mut Vec<T>, len: usize) -> &mut [T] {
    if values.len() < len {
        values.resize(len, T::default());
    }
    &mut values[..len]
}

fn narrow_rows<E: KernelElement>(
    sums: &[E::Sum],
    width: usize,
    out: &mut Columns<'_, E>,
    first: usize,
) {
    for (row, sums) in sums.chunks_exact(width).enumerate() {
        for (out, &sum) in out.row_mut(first + row).iter_mut().zip(sums) {
            *out = E::narrow(sum);
        }
    }
}

/// Computes the exponentials of scores, in rows of as many scores as there are tokens.
struct Softmax<'a, E: Operand> {
    scores: &'a [E::Sum],
    scale: f64,
    /// `exp(scale (score - largest))`, in rows padded to whole units.
    weights: &'a mut [E],
    /// Sums of the weights of each row.
    totals: &'a mut [E::Sum],
    /// `log(sum(exp(scale score)))`.
    log_sums: &'a mut [E::Sum],
}

impl<E: KernelElement> Vectorised for Softmax<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let rows = self.totals.len();
        let (count, padded) = (self.scores.len() / rows, self.weights.len() / rows);
        let scale = E::Sum::from_f64(self.scale);
        let rows = self
            .scores
            .chunks_exact(count)
            .zip(self.weights.chunks_exact_mut(padded));
        let results = self.totals.iter_mut().zip(self.log_sums);
        for ((scores, weights), (total, log_sum)) in rows.zip(results) {
            let shift = scale * largest(scores);
            let minus_shift = E::Sum::default() - shift;
            let (weights, filler) = weights.split_at_mut(count);
            filler.fill(E::default());
            let mut lanes = [E::Sum::default(); LANES];
            let mut chunks = scores.chunks_exact(LANES);
            let mut out = weights.chunks_exact_mut(LANES);
            for (scores, weights) in chunks.by_ref().zip(out.by_ref()) {
                for lane in 0..LANES {
                    let weight = scale.mul_add(scores[lane], minus_shift).exp();
                    weights[lane] = E::narrow(weight);
                    lanes[lane] += weight;
                }
            }
            let mut sum = sum_lanes(lanes);
            for (&score, out) in chunks.remainder().iter().zip(out.into_remainder()) {
                let weight = scale.mul_add(score, minus_shift).exp();
                *out = E::narrow(weight);
                sum += weight.to_f64();
            }
            *total = E::Sum::from_f64(sum);
            *log_sum = E::Sum::from_f64(shift.to_f64() + sum.ln());
        }
    }
}

/// Recomputes the weights from rows of scores, one per key, and computes the gradients of the scores.
struct SoftmaxBackward<'a, E: Operand> {
    scores: &'a [E::Sum],
    /// Gradients of the weights.
    others: &'a [E::Sum],
    scale: f64,
    /// One per column, that is, per query.
    log_sums: &'a [E::Sum],
    /// Sums of `do o`, one per query.
    deltas: &'a [E::Sum],
    /// In rows padded to whole units, as are the gradients `slopes`.
    weights: &'a mut [E],
    slopes: &'a mut [E],
}

impl<E: KernelElement> Vectorised for SoftmaxBackward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let count = self.log_sums.len();
        let padded = count.next_multiple_of(E::UNIT);
        let scale = E::Sum::from_f64(self.scale);
        let rows = self
            .scores
            .chunks_exact(count)
            .zip(self.others.chunks_exact(count));
        let results = self
            .weights
            .chunks_exact_mut(padded)
            .zip(self.slopes.chunks_exact_mut(padded));
        for ((scores, others), (weights, slopes)) in rows.zip(results) {
            let (weights, weights_filler) = weights.split_at_mut(count);
            let (slopes, slopes_filler) = slopes.split_at_mut(count);
            map_to_two(
                [scores, others, self.log_sums, self.deltas],
                [weights, slopes],
                |[score, other, log_sum, delta]| {
                    let weight = (scale * score - log_sum).exp();
                    [
                        E::narrow(weight),
                        E::narrow(weight * (other - delta) * scale),
                    ]
                },
            );
            weights_filler.fill(E::default());
            slopes_filler.fill(E::default());
        }
    }
}

/// The dot product of two rows.
struct Product<'a, E>(&'a [E], &'a [E]);

impl<E: KernelElement> Vectorised for Product<'_, E> {
    type Output = E::Sum;

    #[inline(always)]
    fn run(self) -> E::Sum {
        let mut lanes = [E::Sum::default(); LANES];
        let (mut left, mut right) = (self.0.chunks_exact(LANES), self.1.chunks_exact(LANES));
        for (left, right) in left.by_ref().zip(right.by_ref()) {
            for lane in 0..LANES {
                lanes[lane] += left[lane].widen() * right[lane].widen();
            }
        }
        let mut sum = sum_lanes(lanes);
        for (left, right) in left.remainder().iter().zip(right.remainder()) {
            sum += (left.widen() * right.widen()).to_f64();
        }
        E::Sum::from_f64(sum)
    }
}

/// The largest number, ignoring NaNs.
#[inline(always)]
fn largest<A: Real>(values: &[A]) -> A {
    let larger = |a, b| if b > a { b } else { a };
    let mut lanes = [values[0]; LANES];
    let chunks = values.chunks_exact(LANES);
    for (lane, &value) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = larger(*lane, value);
    }
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = larger(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}
