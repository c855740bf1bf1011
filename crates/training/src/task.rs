//! What a run trains: network, objective and autoencoder, which fit each other.

use alignment::{AlignmentLoss, Heads};
use data::seed;
use diffusion::objective::velocity::Velocity;
use diffusion::repa_e::LatentNorm;
use diffusion::{Denoiser, Sit};
use tch::Tensor;
use torch_ext::{Params, Scope};

use crate::denoising::{Denoising, sit_config};
use crate::repa_e::Joint;
use crate::{AutoencoderModel, Config, Inputs, JointTraining, Objective, TrainError};

/// Network, objective and autoencoder of a run.
#[derive(Debug)]
pub(crate) enum Task {
    /// A denoiser on images, or on the latents of a frozen autoencoder.
    Frozen(Box<FrozenTask>),
    /// REPA-E.
    Joint(Box<JointTask>),
}

/// A denoiser on images, or on the latents of a frozen autoencoder.
#[derive(Debug)]
pub(crate) struct FrozenTask {
    pub(crate) trained: Denoising,
    /// Has the moving average of the weights.
    pub(crate) average: Denoising,
    pub(crate) autoencoder: AutoencoderModel,
}

/// REPA-E: a SiT and an autoencoder, which are trained jointly.
#[derive(Debug)]
pub(crate) struct JointTask {
    pub(crate) trained: JointNetwork,
    /// Has the moving average of the weights.
    pub(crate) average: JointNetwork,
    pub(crate) joint: Joint,
}

/// The denoiser of REPA-E.
#[derive(Debug)]
pub(crate) struct JointNetwork {
    pub(crate) objective: Velocity,
    pub(crate) sit: Sit,
    /// Normalises latents, which are the network's input.
    pub(crate) latent_norm: LatentNorm,
}

/// The weights of denoiser and heads.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) params: Params,
    pub(crate) heads: Heads,
}

impl Task {
    /// Builds the task of `config`. Returns it with the trained weights, and the weights of the moving average, which
    /// start equal and record no gradient.
    pub(crate) fn new(
        config: &Config,
        inputs: &Inputs,
    ) -> Result<(Self, Weights, Weights), TrainError> {
        let Some((settings, autoencoder)) = config.joint() else {
            let (weights, trained) = denoising(config, inputs)?;
            let (average_weights, average) = denoising(config, inputs)?;
            average_weights.start_at(&weights)?;
            let autoencoder = AutoencoderModel::on_demand(config, inputs.device)?;
            let task = FrozenTask {
                trained,
                average,
                autoencoder,
            };
            return Ok((Self::Frozen(Box::new(task)), weights, average_weights));
        };
        let (weights, trained) = joint_network(settings, config, inputs)?;
        let joint = Joint::new(
            config,
            (settings, autoencoder),
            (&weights, &trained.latent_norm),
            inputs.device,
        )?;
        let (average_weights, average) = joint_network(settings, config, inputs)?;
        average_weights.start_at(&weights)?;
        let task = JointTask {
            trained,
            average,
            joint,
        };
        Ok((Self::Joint(Box::new(task)), weights, average_weights))
    }

    /// Builds the weights of another moving average of `trained`, without a network.
    pub(crate) fn further_average(
        config: &Config,
        inputs: &Inputs,
        trained: &Weights,
    ) -> Result<Params, TrainError> {
        let weights = match config.joint() {
            None => denoising(config, inputs)?.0,
            Some((settings, _)) => joint_network(settings, config, inputs)?.0,
        };
        weights.start_at(trained)?;
        Ok(weights.params)
    }

    /// Returns the trained network.
    pub(crate) fn denoiser(&self) -> &dyn Denoiser {
        match self {
            Self::Frozen(task) => task.trained.denoiser(),
            Self::Joint(task) => &task.trained.sit,
        }
    }

    /// Returns autoencoder and discriminator, if they are trained.
    pub(crate) fn joint(&self) -> Option<&Joint> {
        match self {
            Self::Frozen(_) => None,
            Self::Joint(task) => Some(&task.joint),
        }
    }
}

fn denoising(config: &Config, inputs: &Inputs) -> Result<(Weights, Denoising), TrainError> {
    let network = |scope: &Scope| Denoising::new(scope, config, inputs.num_classes);
    Weights::declare(config, inputs, network, Denoising::denoiser)
}

fn joint_network(
    settings: &JointTraining,
    config: &Config,
    inputs: &Inputs,
) -> Result<(Weights, JointNetwork), TrainError> {
    let sit = sit_config(config, inputs.num_classes)?;
    let network = |scope: &Scope| Ok(Sit::new(scope, &sit)?);
    let (weights, sit) = Weights::declare(config, inputs, network, |sit| sit)?;
    let [channels, ..] = sit.dimensions().image;
    let momentum = settings.latent_norm_momentum;
    let network = JointNetwork {
        objective: settings.velocity(),
        latent_norm: LatentNorm::new(&weights.params.root(), channels, momentum)?,
        sit,
    };
    Ok((weights, network))
}

impl Weights {
    /// Declares the weights of `network` and of the heads on its hidden tokens.
    fn declare<N>(
        config: &Config,
        inputs: &Inputs,
        network: impl FnOnce(&Scope) -> Result<N, TrainError>,
        denoiser: impl FnOnce(&N) -> &dyn Denoiser,
    ) -> Result<(Self, N), TrainError> {
        let seed = seed::derive(config.train.seed, "weights", &[]);
        let params = Params::new(inputs.device, seed)?;
        let network = network(&params.root())?;
        let denoiser = denoiser(&network);
        let (rows, columns) = denoiser.dimensions().token_grid;
        for encoder in &inputs.encoders {
            let pools = config.alignment.pool_tokens
                && encoder.grid.0 % rows == 0
                && encoder.grid.1 % columns == 0;
            if encoder.grid != (rows, columns) && !pools {
                return Err(TrainError::TokenGrid {
                    encoder: encoder.name.clone(),
                    found: encoder.grid,
                    model: config.model.name.clone(),
                    expected: (rows, columns),
                });
            }
        }
        let encoders = inputs.encoders.iter();
        let widths: Vec<i64> = encoders.map(|encoder| encoder.width).collect();
        let loss = alignment_loss(config, inputs)?;
        let width = denoiser.dimensions().hidden_width;
        let heads = Heads::new(&params.root(), loss.projections(), width, &widths)?;
        Ok((Self { params, heads }, network))
    }

    /// Makes these weights the start of a moving average of `trained`.
    fn start_at(&self, trained: &Self) -> Result<(), TrainError> {
        for param in self.params.entries().iter() {
            let _frozen = param.tensor.f_set_requires_grad(false)?;
        }
        self.params.load(&trained.params.state_dict())?;
        Ok(())
    }
}

/// Returns the alignment loss of a run.
pub(crate) fn alignment_loss(
    config: &Config,
    inputs: &Inputs,
) -> Result<AlignmentLoss, TrainError> {
    let depth = config.model.alignment_depth()?;
    let terms = config.alignment.terms(inputs.encoders.len(), depth);
    Ok(AlignmentLoss::new(terms)?)
}

/// Returns the number of classes of the network that `weights` belong to, without the null class.
pub(crate) fn num_classes(
    config: &Config,
    weights: &[(String, Tensor)],
) -> Result<i64, TrainError> {
    const TABLE: &str = "y_embedder.embedding_table.weight";
    let rows = weights
        .iter()
        .find(|(name, _)| name == TABLE)
        .and_then(|(_, tensor)| tensor.size().first().copied())
        .ok_or(TrainError::NoWeight(TABLE))?;
    // JiT always has an embedding for the null class.
    let null =
        matches!(config.objective, Objective::XPrediction(_)) || config.model.label_dropout > 0.0;
    Ok(rows - i64::from(null))
}
