//! The CPU kernels: the sweep over a chunk of one weight, and the sum of its squared gradients.
//!
//! The operations and their order are those of libtorch's AdamW and of its weighted sum for the moving average,
//! including fused multiply-adds, so that both forms return the same bits.

// Loops that index several lanes with one index compile to vector instructions.
#![allow(clippy::needless_range_loop)]

use half::bf16;
use torch_ext::kernel::{LANES, Stored, Vectorised, sum_lanes};

use super::operands::Factors;

/// Computes the sum of a gradient's squares in float64, which cannot overflow for float32 values.
pub(super) struct SquaredNorm<'a, G>(pub(super) &'a [G]);

impl<G: Stored<f32>> Vectorised for SquaredNorm<'_, G> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let (pieces, rest) = self.0.as_chunks::<LANES>();
        let mut lanes = [0.0; LANES];
        for piece in pieces {
            for lane in 0..LANES {
                let g = f64::from(piece[lane].widen());
                // The square of a float32 is exact in float64.
                lanes[lane] = g.mul_add(g, lanes[lane]);
            }
        }
        for (lane, g) in lanes.iter_mut().zip(rest) {
            let g = f64::from(g.widen());
            *lane = g.mul_add(g, *lane);
        }
        sum_lanes(lanes)
    }
}

/// Updates weight, moments and `N` moving averages from the gradient. `copy` is empty, or receives the new weight in
/// bfloat16. All other slices have the same length.
pub(super) struct Sweep<'a, G, const N: usize> {
    pub(super) gradient: &'a [G],
    pub(super) weight: &'a mut [f32],
    pub(super) exp_avg: &'a mut [f32],
    pub(super) exp_avg_sq: &'a mut [f32],
    pub(super) averages: [&'a mut [f32]; N],
    pub(super) copy: &'a mut [bf16],
    pub(super) factors: Factors,
}

/// Number of elements per round, such that those of five tensors fit into the first-level cache.
const ROUND: usize = 1024;

impl<G: Stored<f32>, const N: usize> Vectorised for Sweep<'_, G, N> {
    type Output = ();

    /// Works in rounds of several loops. Each loop reads one or two tensors from memory and the others from the cache.
    /// A single loop over all tensors was measured to take twice the time.
    #[inline(always)]
    fn run(mut self) {
        let factors = &self.factors;
        // Like libtorch's `lerp`, the interpolation starts from the nearer end.
        let from_moment = factors.first < 0.5;
        let weight_of_difference = if from_moment {
            factors.first
        } else {
            factors.first - 1.0
        };
        let rounds = self
            .gradient
            .chunks(ROUND)
            .zip(self.weight.chunks_mut(ROUND))
            .zip(self.exp_avg.chunks_mut(ROUND))
            .zip(self.exp_avg_sq.chunks_mut(ROUND));
        for (round, (((gradient, weight), exp_avg), exp_avg_sq)) in rounds.enumerate() {
            for (m, g) in exp_avg.iter_mut().zip(gradient) {
                let g = g.widen() * factors.clip;
                let start = if from_moment { *m } else { g };
                *m = weight_of_difference.mul_add(g - *m, start);
            }
            for (v, g) in exp_avg_sq.iter_mut().zip(gradient) {
                let g = g.widen() * factors.clip;
                *v = (factors.second * g).mul_add(g, *v * factors.keep_second);
            }
            for ((w, m), v) in weight.iter_mut().zip(&*exp_avg).zip(&*exp_avg_sq) {
                let deviation = v.sqrt() / factors.second_correction + factors.eps;
                *w = *w * factors.decay + factors.rate * m / deviation;
            }
            let start = round * ROUND;
            for (average, &(keep, add)) in self.averages.iter_mut().zip(&factors.averages) {
                for (a, w) in average[start..].iter_mut().zip(&*weight) {
                    *a = w.mul_add(add, *a * keep);
                }
            }
            if let Some(copy) = self.copy.get_mut(start..) {
                for (copy, &w) in copy.iter_mut().zip(&*weight) {
                    *copy = bf16::narrow(w);
                }
            }
        }
    }
}
