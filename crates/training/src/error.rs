use std::fmt;
use std::io;
use std::path::PathBuf;

use alignment::AlignmentError;
use diffusion::DiffusionError;
use tch::TchError;
use thiserror::Error;
use torch_ext::TorchError;

use crate::{CheckpointError, Collapse, InvalidConfig};

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
    /// Sampling was stopped on the way.
    #[error("interrupted")]
    Interrupted,

    /// A setting is out of its range.
    #[error(transparent)]
    Config(#[from] InvalidConfig),

    /// The loss or the gradient is NaN or infinite.
    #[error(
        "{what} is {value} at step {step}; the batch holds the samples {}. Look at those \
         images and at the encoder's tokens for them, or start another run with a lower optimizer.lr or \
         optimizer.max_grad_norm; {}",
        list(.samples), .sound
    )]
    NotFinite {
        /// Which figure.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The optimiser step, counted from 1.
        step: u64,
        /// Ids of the batch's samples.
        samples: Vec<u64>,
        /// What of the run is from before.
        sound: SoundCheckpoint,
    },

    /// A figure has left its history for good, and `train.stop_on_collapse` is set.
    #[error("the training has collapsed: {collapse}; train.stop_on_collapse ends the run; {sound}")]
    Collapsed {
        /// The figure.
        collapse: Collapse,
        /// What of the run is from before.
        sound: SoundCheckpoint,
    },

    /// Samples that are no images.
    #[error(
        "sample {first}{} has values that are NaN or infinite, and is no image: {weights} give none; take a \
         checkpoint from before the training collapsed",
        others(*.more)
    )]
    SamplesNotFinite {
        /// Index of the first of them.
        first: u64,
        /// How many others there are.
        more: usize,
        /// The weights, as part of a sentence.
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

    /// Encoder tokens that do not suit the heads.
    #[error("{found} sets of encoder tokens were given, the run aligns with {expected} encoders")]
    EncoderCount {
        /// Number given.
        found: usize,
        /// Number wanted.
        expected: usize,
    },

    /// The encoder's grid is not the denoiser's.
    #[error(
        "encoder {encoder} gives {} x {} patch tokens, the denoiser {model} has {} x {}; choose a \
         model.name with another patch side or another data.resolution, or set \
         alignment.pool_tokens where the encoder's grid is a multiple",
        found.0, found.1, expected.0, expected.1
    )]
    TokenGrid {
        /// The encoder.
        encoder: String,
        /// Its rows and columns of tokens.
        found: (i64, i64),
        /// The model.
        model: String,
        /// Its rows and columns of tokens.
        expected: (i64, i64),
    },

    /// The objective and the network do not go together.
    #[error("the objective {objective} does not train a {network}")]
    Objective {
        /// The objective.
        objective: &'static str,
        /// The network's family.
        network: &'static str,
    },

    /// A file of weights without one that every denoiser has.
    #[error("there is no weight `{0}`: these are not the weights of a denoiser")]
    NoWeight(&'static str),

    /// There are no weights of the autoencoder.
    #[error(
        "`model.autoencoder.weights` is {}, and there is no such file: make it with `python \
         crates/training/python/convert_autoencoder.py WEIGHTS --out {}` from the autoencoder's \
         published weights",
        .0.display(), .0.display()
    )]
    NoAutoencoder(PathBuf),

    /// Weights of the autoencoder that cannot be used.
    #[error("`model.autoencoder.weights`, {}: {source}", .path.display())]
    AutoencoderWeights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TorchError,
    },

    /// Weights of the discriminator that cannot be used.
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

    /// The denoiser, objective or sampler failed.
    #[error(transparent)]
    Diffusion(DiffusionError),

    /// The head or the alignment loss failed.
    #[error(transparent)]
    Alignment(#[from] AlignmentError),

    /// libtorch failed.
    #[error(transparent)]
    Torch(#[from] TorchError),

    /// libtorch failed.
    #[error(transparent)]
    Tch(#[from] TchError),
}

impl TrainError {
    /// With the weights that gave no images.
    pub(crate) fn of_weights(mut self, name: impl Fn() -> String) -> Self {
        if let Self::SamplesNotFinite { weights, .. } = &mut self {
            *weights = name();
        }
        self
    }
}

fn others(count: usize) -> String {
    match count {
        0 => String::new(),
        _ => format!(", like {count} others drawn with it,"),
    }
}

/// The newest checkpoint from before something went wrong, as the end of an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SoundCheckpoint {
    /// The trainer does not know of checkpoints.
    #[default]
    Unknown,
    /// There is none.
    None,
    /// In this folder.
    At(PathBuf),
}

impl fmt::Display for SoundCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => write!(f, "weights of an earlier step are a start for it"),
            Self::None => write!(
                f,
                "there is no checkpoint from before (train.checkpoint_every says how often one is saved)"
            ),
            Self::At(path) => write!(
                f,
                "the last checkpoint from before is {}, and `train --init {}` starts from its averaged weights",
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
