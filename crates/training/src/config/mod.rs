//! The configuration of a training run. Every setting has a default, the paper's value where it
//! states one. Unknown keys are refused.

use std::path::PathBuf;

use alignment::{HeadConfig, LossConfig, LossKind, SpatialNorm};
use data::{Background, LoaderConfig, OpenOptions};
use diffusion::objective::x_prediction::XPrediction;
use diffusion::samplers::SamplerConfig;
use serde::{Deserialize, Serialize};
use tch::Kind;

use crate::Objective;
use crate::learning_rate::{LearningRate, Schedule};

mod autoencoder;
mod check;
mod effect;
mod path;

pub use autoencoder::{Autoencoder, KlLayout, KlSettings, PerChannel};
pub use check::InvalidConfig;
pub use effect::SettingEffect;
pub use path::ConfigPath;

/// The configuration of one training run (one cell of a sweep).
///
/// ```
/// let config = training::Config::default();
/// assert_eq!(config.train.batch_size, 256);
/// assert_eq!(config.optimizer.lr, 1e-4);
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// In a file: another file whose settings this one overrides. It is resolved when the file is
    /// read, and is `None` afterwards.
    #[serde(skip_serializing)]
    pub base: Option<PathBuf>,
    /// The images and how they are read.
    pub data: DataConfig,
    /// The denoiser.
    pub model: ModelConfig,
    /// The training objective.
    pub objective: Objective,
    /// The alignment of hidden tokens with an encoder's tokens.
    pub alignment: AlignmentConfig,
    /// AdamW, gradient clipping and learning-rate schedule.
    pub optimizer: OptimizerConfig,
    /// Length, batch size, precision and checkpoints.
    pub train: TrainConfig,
    /// Samples drawn from the averaged weights.
    pub sample: SampleConfig,
    /// Measurements during and at the end of the run.
    pub evaluate: EvaluateConfig,
}

/// `[data]`: the images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// A Hugging Face `save_to_disk` folder, or a folder of class folders.
    pub path: ConfigPath,
    /// Subfolder with the training split; empty for none.
    pub split: String,
    /// Subfolder with the images that samples are compared with and spatial metrics are computed on;
    /// empty for the training split.
    pub reference_split: String,
    /// Image column of a Hugging Face data set; if empty, it is found by its type.
    pub image_column: String,
    /// Label column of a Hugging Face data set; if empty, it is found by its type.
    pub label_column: String,
    /// Side of the square images in pixels. Other images are cropped and resized as in ADM.
    pub resolution: u32,
    /// Colour behind transparent pixels.
    pub background: Background,
    /// Mirror each image with probability 1/2.
    pub flip: bool,
    /// Number of threads that decode ahead. The order of the images does not depend on it.
    pub workers: usize,
    /// Number of batches decoded ahead.
    pub prefetch: usize,
    /// Memory in MiB for the encoder's tokens of the whole data set. If they fit, each image is
    /// encoded only once. CPU only.
    pub token_memory_mib: u64,
    /// Folder of feature caches, one per subfolder (written by `runner prepare features`). If it has
    /// a cache of an encoder, the tokens are read from it and the encoder does not run. Empty for
    /// none.
    #[serde(skip_serializing_if = "is_default")]
    pub token_cache: ConfigPath,
    /// Folder with the moments of the frozen autoencoder's latents (written by `runner prepare
    /// latents`). They are read, and the autoencoder does not encode. Empty for none.
    #[serde(skip_serializing_if = "is_default")]
    pub latent_cache: ConfigPath,
    /// Prepare the next batch, with its latents and tokens, during the current step. The results do not
    /// change. It needs memory for one more batch and, on CUDA, for the encoder's activations during a
    /// step. By default it is on where it saves time: on CUDA, if caches hold latents and tokens, and on
    /// a CPU with at least twice as many cores as libtorch has threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encode_ahead: Option<bool>,
    /// The run stops if a larger share of the images is unreadable.
    pub max_corrupt_share: f64,
}

impl DataConfig {
    /// Returns the options to open the training split.
    pub fn training_split(&self) -> OpenOptions {
        self.options(&self.split)
    }

    /// Returns the options to open the split that samples are compared with.
    pub fn reference_split(&self) -> OpenOptions {
        if self.reference_split.is_empty() {
            self.training_split()
        } else {
            self.options(&self.reference_split)
        }
    }

    fn options(&self, split: &str) -> OpenOptions {
        let non_empty = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        OpenOptions {
            split: non_empty(split),
            image_column: non_empty(&self.image_column),
            label_column: non_empty(&self.label_column),
            ..OpenOptions::default()
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            path: "experiments/data/emoji64".into(),
            split: "train".to_owned(),
            reference_split: String::new(),
            image_column: String::new(),
            label_column: String::new(),
            resolution: 256,
            background: Background::White,
            flip: true,
            workers: 2,
            prefetch: 4,
            token_memory_mib: 1024,
            token_cache: ConfigPath::default(),
            latent_cache: ConfigPath::default(),
            encode_ahead: None,
            max_corrupt_share: 0.01,
        }
    }
}

/// `[model]`: the denoiser.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A name such as `SiT-B/2` or `JiT-B/16`: family, size and patch side.
    pub name: String,
    /// The map from images to the denoiser's input: `identity` (pixels in [-1, 1]), or a table with
    /// `kind = "kl"` (latents).
    pub autoencoder: Autoencoder,
    /// Apply LayerNorm to queries and keys.
    pub qk_norm: bool,
    /// Probability with which a training sample's label is dropped.
    pub label_dropout: f64,
    /// Dropout of attention weights in JiT's middle blocks.
    #[serde(skip_serializing_if = "is_default")]
    pub attn_dropout: f64,
    /// Dropout after attention and in the MLP of JiT's middle blocks.
    #[serde(skip_serializing_if = "is_default")]
    pub proj_dropout: f64,
    /// Block after which hidden tokens are taken, counted from 1. The default depends on the model's
    /// size: 2 for XS, 4 for S and B, 8 for L and XL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment_depth: Option<i64>,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            name: "SiT-B/2".to_owned(),
            autoencoder: Autoencoder::Identity,
            qk_norm: false,
            label_dropout: 0.1,
            attn_dropout: 0.0,
            proj_dropout: 0.0,
            alignment_depth: None,
        }
    }
}

/// `[alignment]`: encoder, normalisation, head, losses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlignmentConfig {
    /// Name of the encoder, several names separated by commas, or `none`.
    pub encoder: String,
    /// Dtype of the encoder's weights and computation. Its tokens are float32.
    pub encoder_precision: encoders::Precision,
    /// Normalisation of the encoder's tokens.
    pub spatial_norm: SpatialNorm,
    /// Projection of the hidden tokens.
    pub head: HeadConfig,
    /// Losses and their coefficients.
    pub losses: Vec<LossConfig>,
    /// If the encoder's token grid is a multiple of the denoiser's, average its tokens over blocks
    /// before the normalisation. If this is off, grids that differ are refused, as upstream does.
    pub pool_tokens: bool,
}

/// The value of `alignment.encoder` for a run without alignment.
pub const NO_ENCODER: &str = "none";

impl AlignmentConfig {
    /// Returns the encoders' names; empty without alignment.
    pub fn encoders(&self) -> Vec<String> {
        self.encoder
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty() && *name != NO_ENCODER)
            .map(str::to_owned)
            .collect()
    }
}

impl Default for AlignmentConfig {
    fn default() -> Self {
        Self {
            encoder: NO_ENCODER.to_owned(),
            encoder_precision: encoders::Precision::default(),
            spatial_norm: SpatialNorm::default(),
            head: HeadConfig::default(),
            losses: vec![LossConfig {
                kind: LossKind::Cosine,
                coefficient: 1.0,
            }],
            pool_tokens: false,
        }
    }
}

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

/// `[sample]`: samples drawn from the averaged weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Integrator, number of steps and guidance.
    pub sampler: SamplerConfig,
    /// Number of images in the sample grid; 0 for no grid.
    pub grid: usize,
    /// Number of samples for the metrics; 0 for none.
    pub count: usize,
    /// Number of samples drawn at once. On the CPU it is always 8. Batches are always full, so that an
    /// image does not depend on the number of samples.
    pub batch_size: usize,
    /// Seed of noise and labels.
    pub seed: u64,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            sampler: SamplerConfig::default(),
            grid: 64,
            count: 0,
            batch_size: 64,
            seed: 0,
        }
    }
}

/// A metric of samples on Inception features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InceptionMetric {
    /// Frechet distance of the pooled features.
    Fid,
    /// Frechet distance of the spatial features.
    Sfid,
    /// Inception score.
    InceptionScore,
    /// Kernel Inception distance.
    Kid,
    /// Improved precision and recall.
    PrecisionRecall,
}

/// `[evaluate]`: measurements at the end of a run, and during it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluateConfig {
    /// Encoder in whose feature space samples are compared with real images; empty for none.
    pub fd_encoder: String,
    /// Further metrics of samples, on Inception features. They are computed if Inception is installed,
    /// and omitted otherwise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inception: Vec<InceptionMetric>,
    /// Number of steps between evaluations during the run, which are logged to `metrics.jsonl`; 0 for
    /// none. They use the same metrics and the same samples as the final evaluation.
    #[serde(skip_serializing_if = "is_default")]
    pub every: u64,
    /// Number of real images that samples are compared with; 0 for all.
    pub reference_images: usize,
    /// Number of images on which LDS, CDS, SRSS and RMSC of the aligned encoder are computed; 0 for
    /// none.
    pub spatial_images: usize,
    /// Largest number of images for the linear probe of the aligned encoder; 0 for no probe. The probe is
    /// trained on mean patch tokens of that many images of the training split, and scored on that many
    /// of the reference split.
    #[serde(skip_serializing_if = "is_default")]
    pub probe_images: usize,
}

impl Default for EvaluateConfig {
    fn default() -> Self {
        Self {
            fd_encoder: String::new(),
            inception: Vec::new(),
            every: 0,
            reference_images: 0,
            spatial_images: 64,
            probe_images: 0,
        }
    }
}

impl Config {
    /// Returns the objective, with the settings that it takes from other sections.
    pub fn objective(&self) -> Objective {
        match &self.objective {
            Objective::XPrediction(objective) => Objective::XPrediction(XPrediction {
                label_dropout: self.model.label_dropout,
                ..*objective
            }),
            other => other.clone(),
        }
    }

    /// Returns the learning rate as a function of the step.
    pub fn learning_rate(&self) -> LearningRate {
        LearningRate::new(self)
    }

    /// Returns the settings of the data loader. The order of the data depends only on `train.seed`, so
    /// runs with the same seed see the same batches.
    pub fn loader(&self) -> LoaderConfig {
        LoaderConfig {
            batch_size: self.train.batch_size,
            resolution: self.data.resolution,
            seed: self.train.seed,
            workers: self.data.workers,
            prefetch: self.data.prefetch,
            flip: self.data.flip,
            background: self.data.background,
            max_corrupt_share: self.data.max_corrupt_share,
        }
    }
}

/// Rarely used settings are omitted from a file if they have their default value.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_true(value: &bool) -> bool {
    *value
}
