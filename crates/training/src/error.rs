//! The errors of training.

use std::fmt;
use std::io;
use std::path::PathBuf;

use alignment::AlignmentError;
use diffusion::DiffusionError;
use tch::TchError;
use thiserror::Error;
use torch_ext::TorchError;

use crate::checkpoint::error::CheckpointError;
use crate::collapse::Collapse;
use crate::config::InvalidConfig;

impl From<DiffusionError> for TrainError {
    fn from(error: DiffusionError) -> Self {
        match error {
            DiffusionError::Interrupted => Self::Interrupted,
            error => Self::Diffusion(error),
        }
    }
}

/// Why a training run stopped.
#[derive(Debug, Error)]
pub enum TrainError {
    /// Sampling was interrupted.
    #[error("interrupted")]
    Interrupted,

    /// A setting is out of its range.
    #[error(transparent)]
    Config(#[from] InvalidConfig),

    /// The batch cannot be divided among the processes.
    #[error(
        "train.batch_size is {batch_size}, which {processes} processes with train.accumulation {accumulation} cannot \
         share equally: use a multiple of {}, or another number of processes",
        processes * accumulation
    )]
    Processes {
        /// Size of the global batch.
        batch_size: usize,
        /// Parts of a batch that are computed one after another.
        accumulation: usize,
        /// Number of processes.
        processes: usize,
    },

    /// The loss or the gradient is NaN or infinite.
    #[error(
        "{what} is {value} at step {step}; the batch holds the samples {}. Inspect these images and \
         the encoder's tokens for them, or start another run with a lower optimizer.lr or \
         optimizer.max_grad_norm; {}",
        list(.samples), .last_good
    )]
    NotFinite {
        /// The name of the figure.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The optimiser step, counted from 1.
        step: u64,
        /// Ids of the batch's samples.
        samples: Vec<u64>,
        /// The newest checkpoint from before the error.
        last_good: LastGoodCheckpoint,
    },

    /// A figure stays far outside its history, and `train.stop_on_collapse` is set.
    #[error(
        "the training has collapsed: {collapse}; train.stop_on_collapse ends the run; {last_good}"
    )]
    Collapsed {
        /// The figure.
        collapse: Collapse,
        /// The newest checkpoint from before the collapse.
        last_good: LastGoodCheckpoint,
    },

    /// Samples contain NaN or infinite values.
    #[error(
        "sample {first}{} has NaN or infinite values: {weights} do not produce images; use a \
         checkpoint from before the training collapsed",
        others(*.more)
    )]
    SamplesNotFinite {
        /// Index of the first such sample.
        first: u64,
        /// Number of other such samples in its batch.
        more: usize,
        /// The weights that the samples were drawn from, as part of a sentence.
        weights: String,
    },

    /// A checkpoint does not fit the model.
    #[error("checkpoint of step {step}: {reason}")]
    Resume {
        /// The checkpoint's step.
        step: u64,
        /// What does not fit.
        reason: String,
    },

    /// The number of token tensors is not the number of the run's encoders.
    #[error("received tokens of {found} encoders, but the run aligns with {expected} encoders")]
    EncoderCount {
        /// Number of token tensors.
        found: usize,
        /// Number of encoders.
        expected: usize,
    },

    /// The encoder's token grid is not the denoiser's.
    #[error(
        "encoder {encoder} returns {} x {} patch tokens, the denoiser {model} has {} x {}; choose a \
         model.name with another patch size or another data.resolution, or set \
         alignment.pool_tokens if the encoder's grid is a multiple of the denoiser's",
        found.0, found.1, expected.0, expected.1
    )]
    TokenGrid {
        /// Name of the encoder.
        encoder: String,
        /// Rows and columns of the encoder's tokens.
        found: (i64, i64),
        /// Name of the model.
        model: String,
        /// Rows and columns of the model's tokens.
        expected: (i64, i64),
    },

    /// A file of weights lacks one that every denoiser has.
    #[error("the weight `{0}` is missing: these are not the weights of a denoiser")]
    NoWeight(&'static str),

    /// The file of the autoencoder's weights does not exist.
    #[error(
        "`model.autoencoder.weights` is {}, and there is no such file: create it with `python \
         crates/training/python/convert_autoencoder.py WEIGHTS --out {}` from the autoencoder's \
         published weights",
        .0.display(), .0.display()
    )]
    NoAutoencoder(PathBuf),

    /// The autoencoder's weights cannot be used.
    #[error("`model.autoencoder.weights`, {}: {source}", .path.display())]
    AutoencoderWeights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TorchError,
    },

    /// The discriminator's weights cannot be used.
    #[error("`objective.discriminator_weights`, {}: {source}", .path.display())]
    DiscriminatorWeights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TorchError,
    },

    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),

    /// A log could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),

    /// The denoiser, objective, autoencoder or sampler failed.
    #[error(transparent)]
    Diffusion(DiffusionError),

    /// The head or the alignment loss failed.
    #[error(transparent)]
    Alignment(#[from] AlignmentError),

    /// A libtorch operation failed.
    #[error(transparent)]
    Torch(#[from] TorchError),

    /// A libtorch operation failed.
    #[error(transparent)]
    Tch(#[from] TchError),
}

impl TrainError {
    /// Sets the name of the weights of [`TrainError::SamplesNotFinite`].
    pub(crate) fn with_weights(mut self, name: impl Fn() -> String) -> Self {
        if let Self::SamplesNotFinite { weights, .. } = &mut self {
            *weights = name();
        }
        self
    }
}

fn others(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => " (and 1 other drawn with it)".to_owned(),
        _ => format!(" (and {count} others drawn with it)"),
    }
}

/// The newest checkpoint from before a failure. It is displayed as the last part of an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LastGoodCheckpoint {
    /// The trainer has no checkpoint folder.
    #[default]
    Unknown,
    /// No checkpoint is from before the failure.
    None,
    /// The checkpoint's folder.
    At(PathBuf),
}

impl fmt::Display for LastGoodCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => write!(f, "a new run can start from weights of an earlier step"),
            Self::None => write!(
                f,
                "there is no earlier checkpoint (train.checkpoint_every sets how often one is saved)"
            ),
            Self::At(path) => write!(
                f,
                "the last good checkpoint is {}, and `train --init {}` starts from its averaged weights",
                path.display(),
                path.join("ema.safetensors").display()
            ),
        }
    }
}

fn list(samples: &[u64]) -> String {
    samples
        .iter()
        .map(u64::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
