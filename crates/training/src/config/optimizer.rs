//! `[optimizer]`: AdamW, gradient clipping and the schedule of the learning rate.

use serde::{Deserialize, Serialize};

use super::omit::is_default;

/// `[optimizer]`: AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Learning rate after the warm-up.
    pub lr: f64,
    /// Learning rate for a batch of 256, scaled linearly with the batch size. It replaces `lr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blr: Option<f64>,
    /// Schedule of the learning rate after the warm-up: `constant`, or `cosine`, which falls to
    /// `min_lr` at the last step.
    #[serde(skip_serializing_if = "is_default")]
    pub schedule: Schedule,
    /// Final learning rate of the `cosine` schedule.
    #[serde(skip_serializing_if = "is_default")]
    pub min_lr: f64,
    /// Decay rates of the two moments.
    pub betas: (f64, f64),
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the square root of the second moment.
    pub eps: f64,
    /// Gradients with a larger norm are scaled down to it.
    pub max_grad_norm: f64,
    /// Number of steps over which the learning rate rises linearly from 0.
    pub warmup_steps: u64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            lr: 1e-4,
            blr: None,
            schedule: Schedule::default(),
            min_lr: 0.0,
            betas: (0.9, 0.999),
            weight_decay: 0.0,
            eps: 1e-8,
            max_grad_norm: 1.0,
            warmup_steps: 0,
        }
    }
}

/// The course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays constant.
    #[default]
    Constant,
    /// It falls along half a cosine to `optimizer.min_lr` at the last step (`adjust_learning_rate`
    /// of JiT upstream).
    Cosine,
}
