//! A denoiser with the objective that it is trained with.

use diffusion::models::meanflow::MeanFlowSit;
use diffusion::objective::meanflow::MeanFlow;
use diffusion::objective::velocity::Velocity;
use diffusion::objective::x_prediction::XPrediction;
use diffusion::samplers::jit::JitSampler;
use diffusion::samplers::meanflow::MeanFlowSampler;
use diffusion::samplers::{Sampler, SamplerConfig};
use diffusion::{Denoiser, DiffusionError, Jit, JitConfig, Mode, Sit, SitConfig};
use tch::Tensor;
use torch_ext::{Generator, Scope};

use crate::config::meanflow_sampler;
use crate::forward::Drawn;
use crate::{Config, Objective, TrainError};

/// A denoiser and its objective, which fit each other.
#[derive(Debug)]
pub(crate) enum Denoising {
    Velocity(Velocity, Sit),
    XPrediction(XPrediction, Jit),
    MeanFlow(MeanFlow, MeanFlowSit),
}

impl Denoising {
    /// Builds the network of `config` for `num_classes` classes. The denoiser of REPA-E is a SiT that predicts a
    /// velocity.
    pub(crate) fn new(
        scope: &Scope,
        config: &Config,
        num_classes: i64,
    ) -> Result<Self, TrainError> {
        Ok(match config.objective() {
            Objective::Velocity(objective) => Self::Velocity(
                objective,
                Sit::new(scope, &sit_config(config, num_classes)?)?,
            ),
            Objective::RepaE(joint) => {
                let sit = Sit::new(scope, &sit_config(config, num_classes)?)?;
                Self::Velocity(joint.velocity(), sit)
            }
            Objective::XPrediction(objective) => Self::XPrediction(
                objective,
                Jit::new(scope, &jit_config(config, num_classes)?)?,
            ),
            Objective::Meanflow(objective) => {
                let sit = sit_config(config, num_classes)?;
                Self::MeanFlow(objective, MeanFlowSit::new(scope, &sit)?)
            }
        })
    }

    /// Returns the network.
    pub(crate) fn denoiser(&self) -> &dyn Denoiser {
        match self {
            Self::Velocity(_, sit) => sit,
            Self::XPrediction(_, jit) => jit,
            Self::MeanFlow(_, network) => network,
        }
    }

    /// Draws times and noise for images or latents `x0`, and which of `labels` are dropped. These are all
    /// random numbers of a forward pass except those of dropout.
    pub(crate) fn draw(
        &self,
        x0: &Tensor,
        labels: &Tensor,
        generator: &mut Generator,
    ) -> Result<Drawn<'_>, TrainError> {
        Ok(match self {
            Self::Velocity(objective, sit) => {
                let noisy = objective.draw(x0, generator)?;
                let labels = sit.drop_labels(labels, Mode::Train(generator))?;
                Drawn::Velocity((objective, sit), noisy, labels)
            }
            Self::XPrediction(objective, jit) => {
                let noisy = objective.draw(x0, labels, jit.dimensions().num_classes, generator)?;
                Drawn::XPrediction((objective, jit), noisy)
            }
            Self::MeanFlow(objective, network) => {
                let noisy = objective.draw(network, x0, labels, generator)?;
                Drawn::MeanFlow((objective, network), noisy)
            }
        })
    }

    /// Draws images (or latents) from standard normal `noise` `[B, C, H, W]` for `labels` `[B]`. A sampler that adds
    /// noise in each step takes it from `step_noise`, `[B, C, H, W]` in float64. `check_interrupted` is called after
    /// each step; an error ends the sampling.
    pub(crate) fn sample(
        &self,
        config: SamplerConfig,
        noise: &Tensor,
        labels: &Tensor,
        step_noise: impl FnMut() -> Result<Tensor, DiffusionError>,
        check_interrupted: impl Fn() -> Result<(), DiffusionError>,
    ) -> Result<Tensor, DiffusionError> {
        match self {
            Self::Velocity(objective, sit) => {
                let check = || check_interrupted();
                sample_velocity((objective, sit), config, noise, labels, step_noise, check)
            }
            Self::XPrediction(objective, jit) => {
                JitSampler::new(config, *objective)?
                    .sample(jit, noise, labels, |_| check_interrupted())
            }
            Self::MeanFlow(_, network) => MeanFlowSampler::new(meanflow_sampler(config))?.sample(
                network,
                noise,
                labels,
                |_| check_interrupted(),
            ),
        }
    }
}

/// [`Denoising::sample`] of a SiT.
pub(crate) fn sample_velocity(
    (objective, sit): (&Velocity, &Sit),
    config: SamplerConfig,
    noise: &Tensor,
    labels: &Tensor,
    mut step_noise: impl FnMut() -> Result<Tensor, DiffusionError>,
    check_interrupted: impl Fn() -> Result<(), DiffusionError>,
) -> Result<Tensor, DiffusionError> {
    Sampler::new(config, objective.path)?.sample_with(
        sit,
        noise,
        labels,
        |_| step_noise(),
        |_| check_interrupted(),
    )
}

/// Returns the settings of the SiT of `config`.
pub(crate) fn sit_config(config: &Config, num_classes: i64) -> Result<SitConfig, TrainError> {
    let model = &config.model;
    let [in_channels, input_size] = input_shape(config)?;
    Ok(SitConfig {
        input_size,
        in_channels,
        num_classes,
        class_dropout: model.label_dropout,
        qk_norm: model.qk_norm,
        // Upstream's REPA-E trains the position embedding, apparently by mistake.
        train_pos_embed: matches!(config.objective, Objective::RepaE(_)),
        ..SitConfig::named(&model.name)?
    })
}

fn jit_config(config: &Config, num_classes: i64) -> Result<JitConfig, TrainError> {
    let model = &config.model;
    let [in_channels, input_size] = input_shape(config)?;
    Ok(JitConfig {
        input_size,
        in_channels,
        num_classes,
        attn_dropout: model.attn_dropout,
        proj_dropout: model.proj_dropout,
        ..JitConfig::named(&model.name)?
    })
}

/// Returns channels and side of the denoiser's input.
fn input_shape(config: &Config) -> Result<[i64; 2], TrainError> {
    let side = i64::from(config.data.resolution);
    let [channels, size, _] = config.model.autoencoder.latent_shape(side)?;
    Ok([channels, size])
}
