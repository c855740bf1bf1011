//! The sweep over some elements of one weight, and the sum of their squared gradients.
//!
//! The operations and their order are those of libtorch's own AdamW and of its sum for the moving average,
//! fused multiplications and additions included, so that both forms give the same bits.

// Lanes of several rows, one index for all: what becomes a vector instruction.
#![allow(clippy::needless_range_loop)]

use half::bf16;
use torch_ext::kernel::{LANES, Stored, Vectorised, sum_lanes};

use super::Factors;

/// The sum of the squares of `gradient`, in float64: float32's range does not bound it.
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
                // The square is exact.
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

/// Gradient and weight to new weight, moments and `N` moving averages; `copy` is empty, or takes the new
/// weight in bfloat16. All slices else have one length.
pub(super) struct Sweep<'a, G, const N: usize> {
    pub(super) gradient: &'a [G],
    pub(super) weight: &'a mut [f32],
    pub(super) exp_avg: &'a mut [f32],
    pub(super) exp_avg_sq: &'a mut [f32],
    pub(super) averages: [&'a mut [f32]; N],
    pub(super) copy: &'a mut [bf16],
    pub(super) factors: Factors,
}

/// Elements of a round: those of five tensors fit into the first cache.
const ROUND: usize = 1024;

impl<G: Stored<f32>, const N: usize> Vectorised for Sweep<'_, G, N> {
    type Output = ();

    /// In rounds of several loops, each of which reads one or two tensors from memory and the rest from the
    /// cache. One loop over all of them at once takes twice the time, by measurement.
    #[inline(always)]
    fn run(mut self) {
        let by = &self.factors;
        // The interpolation starts from its nearer end, as libtorch's does.
        let near = by.first < 0.5;
        let towards = if near { by.first } else { by.first - 1.0 };
        let rounds = self
            .gradient
            .chunks(ROUND)
            .zip(self.weight.chunks_mut(ROUND))
            .zip(self.exp_avg.chunks_mut(ROUND))
            .zip(self.exp_avg_sq.chunks_mut(ROUND));
        for (round, (((gradient, weight), exp_avg), exp_avg_sq)) in rounds.enumerate() {
            for (m, g) in exp_avg.iter_mut().zip(gradient) {
                let g = g.widen() * by.clip;
                let start = if near { *m } else { g };
                *m = towards.mul_add(g - *m, start);
            }
            for (v, g) in exp_avg_sq.iter_mut().zip(gradient) {
                let g = g.widen() * by.clip;
                *v = (by.second * g).mul_add(g, *v * by.keep_second);
            }
            for ((w, m), v) in weight.iter_mut().zip(&*exp_avg).zip(&*exp_avg_sq) {
                let deviation = v.sqrt() / by.second_correction + by.eps;
                *w = *w * by.decay + by.rate * m / deviation;
            }
            let start = round * ROUND;
            for (average, &(keep, add)) in self.averages.iter_mut().zip(&by.averages) {
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
