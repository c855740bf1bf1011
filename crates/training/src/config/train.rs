//! `[train]`: length, batch size, precision and checkpoints.

use serde::{Deserialize, Serialize};
use tch::Kind;

use super::omit::{is_default, is_true};

/// `[train]`: length, batch size, precision and checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Number of optimiser steps.
    pub steps: u64,
    /// Number of images per optimiser step.
    pub batch_size: usize,
    /// Number of parts in which a batch is processed to save memory. It must divide `batch_size`.
    pub accumulation: usize,
    /// Precision of matrix products. Weights and losses stay in float32.
    pub precision: TrainPrecision,
    /// Let a GPU round the inputs of float32 matrix products and convolutions to TF32, which is faster
    /// (`--allow-tf32` upstream). The autoencoder still computes in float32. No effect on the CPU.
    #[serde(skip_serializing_if = "is_default")]
    pub tf32: bool,
    /// Use only deterministic operators on a GPU, which is slower; an operator without a deterministic form
    /// is an error. Needs `CUBLAS_WORKSPACE_CONFIG=:4096:8` in the environment. No effect on the CPU, whose
    /// operators are deterministic.
    #[serde(skip_serializing_if = "is_default")]
    pub deterministic: bool,
    /// Use fused operations where they exist: for alignment loss, modulated layer norms, gated residuals and
    /// the update of the weights; on the CPU also for attention and GELU. If this is off, libtorch's
    /// operations are composed. The results differ by rounding errors.
    #[serde(skip_serializing_if = "is_true")]
    pub fused: bool,
    /// Record the forward and backward pass of a step once and replay it as a CUDA graph, which saves the
    /// host's overhead per operator. The results are the same. Supports `velocity` and `x-prediction` without
    /// dropout and accumulation. It needs memory for the activations of each cell. No effect on the CPU.
    #[serde(skip_serializing_if = "is_default")]
    pub cuda_graphs: bool,
    /// Dtype in which several processes that share a batch average their gradients: float32, or bfloat16, which halves the
    /// bytes. No effect on a single process.
    #[serde(skip_serializing_if = "is_default")]
    pub reduce_dtype: ReduceDtype,
    /// Seed of all random numbers of the training.
    pub seed: u64,
    /// Decay per step of the weights' moving average.
    pub ema_decay: f64,
    /// Decay of a second moving average, as in JiT. Samples are drawn from the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_ema_decay: Option<f64>,
    /// End the run as failed when a figure has collapsed. If this is off, the run only logs a warning.
    #[serde(skip_serializing_if = "is_default")]
    pub stop_on_collapse: bool,
    /// Number of steps between lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Write `steps_per_s` to `metrics.jsonl`. It is the only figure there that differs between equal runs.
    pub log_speed: bool,
    /// Number of steps between checkpoints. The last step always has one.
    pub checkpoint_every: u64,
    /// Number of checkpoints to keep.
    pub keep_checkpoints: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 400_000,
            batch_size: 256,
            accumulation: 1,
            precision: TrainPrecision::Fp32,
            tf32: false,
            deterministic: false,
            fused: true,
            cuda_graphs: false,
            reduce_dtype: ReduceDtype::Fp32,
            seed: 0,
            ema_decay: 0.9999,
            second_ema_decay: None,
            stop_on_collapse: false,
            log_every: 100,
            log_speed: true,
            checkpoint_every: 10_000,
            keep_checkpoints: 2,
        }
    }
}

/// Precision of matrix products and attention of the denoiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainPrecision {
    /// float32 throughout.
    #[default]
    Fp32,
    /// bfloat16 under autocast.
    Bf16,
}

impl TrainPrecision {
    /// Returns the autocast dtype, or `None` for float32.
    pub fn autocast(self) -> Option<Kind> {
        match self {
            Self::Fp32 => None,
            Self::Bf16 => Some(Kind::BFloat16),
        }
    }
}

/// Dtype of the gradients that several processes average.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReduceDtype {
    /// float32.
    #[default]
    Fp32,
    /// bfloat16. Sums are rounded to 8 bits.
    Bf16,
}
