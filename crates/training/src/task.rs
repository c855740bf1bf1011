//! What a run trains: network, objective and autoencoder, which fit each other.

use diffusion::repa_e::LatentNorm;
use diffusion::{Denoiser, Sit};
use torch_ext::{Params, Scope};

use crate::denoising::{Denoising, sit_config};
use crate::repa_e::{Joint, JointNetwork};
use crate::weights::Weights;
use crate::{AutoencoderModel, Config, Inputs, JointTraining, TrainError};

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
