//! The whole configuration: all sections, and what the settings of several sections give together.

use data::LoaderConfig;
use diffusion::objective::x_prediction::XPrediction;
use serde::{Deserialize, Serialize};

use super::alignment::AlignmentConfig;
use super::autoencoder::{Autoencoder, KlSettings};
use super::data::DataConfig;
use super::evaluate::EvaluateConfig;
use super::joint_training::JointTraining;
use super::model::ModelConfig;
use super::objective::Objective;
use super::optimizer::OptimizerConfig;
use super::sample::SampleConfig;
use super::train::TrainConfig;

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

    /// Returns the settings of joint training and of the autoencoder that is trained, for REPA-E.
    pub(crate) fn joint(&self) -> Option<(&JointTraining, &KlSettings)> {
        match (&self.objective, &self.model.autoencoder) {
            (Objective::RepaE(joint), Autoencoder::Kl(settings)) => Some((joint, settings)),
            _ => None,
        }
    }

    /// Returns the settings of the data loader. The order of the data depends only on `train.seed`, so
    /// runs with the same seed see the same batches.
    pub fn loader(&self) -> LoaderConfig {
        LoaderConfig {
            batch_size: self.train.batch_size,
            resolution: self.data.resolution,
            seed: self.train.seed,
            workers: self.data.decoding_threads(),
            prefetch: self.data.prefetch,
            flip: self.data.flip,
            background: self.data.background,
            max_corrupt_share: self.data.max_corrupt_share,
        }
    }
}
