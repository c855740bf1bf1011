//! What a training run is, as data. Every section has defaults, the paper's where it names one;
//! unknown keys are refused.

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
mod path;
mod shapes;

pub use autoencoder::{Autoencoder, KlLayout, KlSettings, PerChannel};
pub use check::InvalidConfig;
pub use path::ConfigPath;
pub use shapes::Shapes;

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
    /// In a file: another file whose settings lie below this one's. Resolved on reading, so
    /// always `None` afterwards.
    #[serde(skip_serializing)]
    pub base: Option<PathBuf>,
    /// Where the images are and how they are read.
    pub data: DataConfig,
    /// The denoiser.
    pub model: ModelConfig,
    /// What the denoiser learns.
    pub objective: Objective,
    /// What its hidden tokens are aligned with.
    pub alignment: AlignmentConfig,
    /// AdamW, clipping, schedule.
    pub optimizer: OptimizerConfig,
    /// Length, batch, precision, checkpoints.
    pub train: TrainConfig,
    /// Samples drawn at the end.
    pub sample: SampleConfig,
    /// What is measured at the end.
    pub evaluate: EvaluateConfig,
}

/// `[data]`: the images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// A Hugging Face `save_to_disk` folder, or a folder of class folders.
    pub path: ConfigPath,
    /// Sub-folder for training; empty for none.
    pub split: String,
    /// Sub-folder that samples are compared with and spatial metrics are computed on; empty for
    /// the training split.
    pub reference_split: String,
    /// Image column of a Hugging Face data set; found by its type when empty.
    pub image_column: String,
    /// Label column of a Hugging Face data set; found by its type when empty.
    pub label_column: String,
    /// Side of the square images in pixels; others are cropped and resized as ADM does.
    pub resolution: u32,
    /// What shows through transparent pixels.
    pub background: Background,
    /// Mirror each image with probability 1/2.
    pub flip: bool,
    /// Threads that decode ahead. The order of the images does not depend on it.
    pub workers: usize,
    /// Batches decoded ahead.
    pub prefetch: usize,
    /// Memory in MiB for the encoder's tokens of a whole data set: where they fit, each image is
    /// encoded once. On the CPU only.
    pub token_memory_mib: u64,
    /// Folder of feature caches, one a sub-folder (`runner prepare features` makes them). Where
    /// there is one of an encoder, its tokens are read and the encoder does not run. Empty for
    /// none.
    #[serde(skip_serializing_if = "is_default")]
    pub token_cache: ConfigPath,
    /// Folder of the moments of the frozen autoencoder's latents (`runner prepare latents` makes
    /// it): they are read and the autoencoder does not run. Empty for none.
    #[serde(skip_serializing_if = "is_default")]
    pub latent_cache: ConfigPath,
    /// Make the next batch, with its latents and tokens, while this one is trained on; the results are the
    /// same. Takes memory for one more batch and, on CUDA, for what the encoder computes beside a step. Left
    /// out, it is done where it pays: on CUDA, where caches hold latents and tokens, and on a CPU with
    /// twice as many cores as libtorch has threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encode_ahead: Option<bool>,
    /// Share of unreadable images above which the run stops.
    pub max_corrupt_share: f64,
}

impl DataConfig {
    /// How to open the training split.
    pub fn training_split(&self) -> OpenOptions {
        self.options(&self.split)
    }

    /// How to open the split that samples are compared with.
    pub fn reference_split(&self) -> OpenOptions {
        if self.reference_split.is_empty() {
            self.training_split()
        } else {
            self.options(&self.reference_split)
        }
    }

    fn options(&self, split: &str) -> OpenOptions {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        OpenOptions {
            split: given(split),
            image_column: given(&self.image_column),
            label_column: given(&self.label_column),
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
    /// A name such as `SiT-B/2`, or `JiT-B/16`: size and patch side.
    pub name: String,
    /// How images become the denoiser's input: `identity` (pixels in [-1, 1]), or a table with
    /// `kind = "kl"` (latents).
    pub autoencoder: Autoencoder,
    /// LayerNorm on queries and keys.
    pub qk_norm: bool,
    /// Probability of training on a sample without its label.
    pub label_dropout: f64,
    /// Dropout of attention weights in JiT's middle blocks.
    #[serde(skip_serializing_if = "is_default")]
    pub attn_dropout: f64,
    /// Dropout after attention and in the MLP of JiT's middle blocks.
    #[serde(skip_serializing_if = "is_default")]
    pub proj_dropout: f64,
    /// Block after which hidden tokens are taken, counted from 1; by size when left out
    /// (XS 2, S and B 4, L and XL 8).
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
    /// Encoder by name, several joined by commas, or `none`.
    pub encoder: String,
    /// What the encoder's weights are cast to and what it computes in; its tokens are float32.
    pub encoder_precision: encoders::Precision,
    /// Normalisation of the encoder's tokens.
    pub spatial_norm: SpatialNorm,
    /// Projection of the hidden tokens.
    pub head: HeadConfig,
    /// Losses and their coefficients.
    pub losses: Vec<LossConfig>,
    /// Where the encoder's token grid is a multiple of the denoiser's, average its tokens over
    /// blocks before the normalisation. Otherwise grids that differ are refused, as upstream does.
    pub pool_tokens: bool,
}

/// The name of the encoder of a run without alignment.
pub const NO_ENCODER: &str = "none";

impl AlignmentConfig {
    /// The encoders' names; empty without alignment.
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
    /// Learning rate of a batch of 256, scaled with the batch; takes the place of `lr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blr: Option<f64>,
    /// What the learning rate does after the warm-up: `constant` or `cosine`, which falls to
    /// `min_lr` at the last step.
    #[serde(skip_serializing_if = "is_default")]
    pub schedule: Schedule,
    /// Where `cosine` ends.
    #[serde(skip_serializing_if = "is_default")]
    pub min_lr: f64,
    /// Decay rates of the two moments.
    pub betas: (f64, f64),
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Largest norm of the gradient.
    pub max_grad_norm: f64,
    /// Steps in which the learning rate rises linearly from 0.
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

/// `[train]`: length, batch, precision, checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Images in an optimiser step.
    pub batch_size: usize,
    /// Parts that a batch is cut into to save memory; divides `batch_size`.
    pub accumulation: usize,
    /// Precision of matrix products; weights and losses stay in float32.
    pub precision: Precision,
    /// Let a GPU round the inputs of float32 products and convolutions to TF32, which is faster; upstream's
    /// `--allow-tf32`. The autoencoder computes in float32 all the same. Changes nothing on the CPU.
    #[serde(skip_serializing_if = "is_default")]
    pub tf32: bool,
    /// Make a GPU choose deterministic operators, and refuse those that have none; slower. Needs
    /// `CUBLAS_WORKSPACE_CONFIG=:4096:8` in the environment. Changes nothing on the CPU, whose results are.
    #[serde(skip_serializing_if = "is_default")]
    pub deterministic: bool,
    /// Operations of our own where there are some: alignment loss, modulated layer norms, gated residuals, the
    /// update of the weights; on the CPU attention and GELU too. Off, they are composed of libtorch's;
    /// results differ by roundings.
    #[serde(skip_serializing_if = "is_true")]
    pub fused: bool,
    /// Record the forward and backward pass of a step once and replay them as a CUDA graph, which saves
    /// the host's cost of each operator; results are the same. For `velocity` and `x-prediction` without
    /// dropout and accumulation; takes memory for the activations of each cell. Changes nothing on the CPU.
    #[serde(skip_serializing_if = "is_default")]
    pub cuda_graphs: bool,
    /// Seed of everything random.
    pub seed: u64,
    /// Decay of the weights' moving average, per step.
    pub ema_decay: f64,
    /// Decay of a second moving average, as JiT keeps. Samples are drawn from the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_ema_decay: Option<f64>,
    /// End the run, as failed, when a figure has left its own history for good; it is warned of in any case.
    #[serde(skip_serializing_if = "is_default")]
    pub stop_on_collapse: bool,
    /// Steps between lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Write `steps_per_s` to `metrics.jsonl`. The only figure there that differs from run to run.
    pub log_speed: bool,
    /// Steps between checkpoints; the last step always has one.
    pub checkpoint_every: u64,
    /// Checkpoints kept.
    pub keep_checkpoints: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 400_000,
            batch_size: 256,
            accumulation: 1,
            precision: Precision::Fp32,
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

/// Precision of matrix products and attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32 throughout.
    #[default]
    Fp32,
    /// bfloat16 under autocast.
    Bf16,
}

impl Precision {
    /// The autocast dtype, `None` for float32.
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
    /// Integrator, steps, guidance.
    pub sampler: SamplerConfig,
    /// Images in the sample grid; 0 for none.
    pub grid: usize,
    /// Samples that the metrics see; 0 for none.
    pub count: usize,
    /// Samples drawn at once; 8 on the CPU, whatever it says. Batches are always whole, so that
    /// an image is the same in any number of them.
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

/// A measure of samples that is of Inception's features.
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

/// `[evaluate]`: what is measured at the end of a run, and on the way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluateConfig {
    /// Encoder in whose feature space samples are compared with real images; empty for none.
    pub fd_encoder: String,
    /// What else samples are measured by, on Inception's features: all of them where Inception is on
    /// the machine, none where it is not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inception: Vec<InceptionMetric>,
    /// Steps between evaluations on the way, which `metrics.jsonl` gets; 0 for none. They are those
    /// of the end, of the same samples.
    #[serde(skip_serializing_if = "is_default")]
    pub every: u64,
    /// Real images that samples are compared with; 0 for all.
    pub reference_images: usize,
    /// Images on which LDS, CDS, SRSS and RMSC of the aligned encoder are computed; 0 for none.
    pub spatial_images: usize,
    /// Images of the training split, at most, on whose mean patch tokens a linear probe of the aligned
    /// encoder is trained, and of the reference split on which it is scored; 0 for none.
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
    /// The objective, with the settings that it takes from other sections.
    pub fn objective(&self) -> Objective {
        match &self.objective {
            Objective::XPrediction(objective) => Objective::XPrediction(XPrediction {
                label_dropout: self.model.label_dropout,
                ..*objective
            }),
            other => other.clone(),
        }
    }

    /// The learning rate by step.
    pub fn learning_rate(&self) -> LearningRate {
        LearningRate::new(self)
    }

    /// The part that the data loader reads. The order of the data depends on `train.seed` alone,
    /// so runs of one seed see the same batches.
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

/// Settings that few runs have are left out of a file where they change nothing.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_true(value: &bool) -> bool {
    *value
}
