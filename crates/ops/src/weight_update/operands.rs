//! What an update reads and changes, and the factors of a step.

use tch::Tensor;
use torch_ext::optim::AdamW;

/// Largest number of moving averages that a sweep updates.
pub const AVERAGES: usize = 2;

/// Number of elements that a thread, or a block on CUDA, processes at once. The rounding of the gradient norm depends
/// on it, but not on the number of threads.
pub(super) const CHUNK: usize = 1 << 14;

/// A weight with its gradient, moments, averages and copy, all of the same shape.
#[derive(Debug)]
pub struct Operands<'a> {
    /// float32, or bfloat16 if `copy` is `Some`.
    pub gradient: Tensor,
    /// float32, contiguous, as are the moments.
    pub weight: &'a Tensor,
    /// The first moment.
    pub exp_avg: &'a Tensor,
    /// The second moment.
    pub exp_avg_sq: &'a Tensor,
    /// One for each of [`Update::decays`], at most [`AVERAGES`].
    pub averages: Vec<&'a Tensor>,
    /// Receives the new weight, in bfloat16.
    pub copy: Option<&'a Tensor>,
}

/// The settings of one update.
#[derive(Debug)]
pub struct Update<'a> {
    /// Learning rate, betas, weight decay and eps.
    pub settings: AdamW,
    /// The step, counted from 1.
    pub step: u64,
    /// Gradients are scaled by `min(1, max_norm / (norm + 1e-6))`.
    pub max_norm: f64,
    /// Decay of each moving average.
    pub decays: &'a [f64],
}

/// The factors of a step, rounded to float32 as in libtorch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factors {
    /// `min(1, max_norm / (norm + 1e-6))`; NaN if the norm is NaN.
    pub(super) clip: f32,
    /// `1 - beta1`.
    pub(super) first: f32,
    /// `beta2`.
    pub(super) keep_second: f32,
    /// `1 - beta2`.
    pub(super) second: f32,
    /// `sqrt(1 - beta2^t)`.
    pub(super) second_correction: f32,
    pub(super) eps: f32,
    /// `1 - lr * weight_decay`.
    pub(super) decay: f32,
    /// `-lr / (1 - beta1^t)`.
    pub(super) rate: f32,
    /// `decay` and `1 - decay` of each average.
    pub(super) averages: [(f32, f32); AVERAGES],
}

impl Factors {
    pub(super) fn new(update: &Update<'_>) -> Self {
        let AdamW {
            lr,
            betas: (beta1, beta2),
            weight_decay,
            eps,
        } = update.settings;
        let step = update.step as f64;
        let mut averages = [(1.0, 0.0); AVERAGES];
        for (average, &decay) in averages.iter_mut().zip(update.decays) {
            *average = (decay as f32, (1.0 - decay) as f32);
        }
        Self {
            clip: 1.0,
            first: (1.0 - beta1) as f32,
            keep_second: beta2 as f32,
            second: (1.0 - beta2) as f32,
            second_correction: (1.0 - beta2.powf(step)).sqrt() as f32,
            eps: eps as f32,
            decay: (1.0 - lr * weight_decay) as f32,
            rate: (-lr / (1.0 - beta1.powf(step))) as f32,
            averages,
        }
    }

    /// Sets the clipping factor. It does not use `f32::min`, which would replace a NaN by 1.
    pub(super) fn clipped(self, norm: f32, max_norm: f64) -> Self {
        let factor = max_norm as f32 / (norm + 1e-6);
        let clip = if factor > 1.0 { 1.0 } else { factor };
        Self { clip, ..self }
    }
}
