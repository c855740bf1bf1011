//! The objectives of a run, and the forward pass of each.

use alignment::Head;
use diffusion::objective::meanflow::{self, MeanFlow};
use diffusion::objective::velocity::{self, Velocity};
use diffusion::objective::x_prediction::{self, XPrediction};
use diffusion::samplers::jit::JitSampler;
use diffusion::samplers::meanflow::{MeanFlowSampler, MeanFlowSamplerConfig};
use diffusion::samplers::{Sampler, SamplerConfig};
use diffusion::{Denoiser, DiffusionError, Mode};
use serde::{Deserialize, Deserializer, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, autocast};

use crate::model::{Model, Network};
use crate::{JointTraining, TrainError};

/// `[objective]`: the training objective. `kind` selects it: `velocity` (the default), `x-prediction`,
/// `meanflow` or `repa-e`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Objective {
    /// SiT: the network predicts the velocity of the interpolant between image and noise.
    Velocity(Velocity),
    /// JiT: the network predicts the image; the loss compares velocities.
    XPrediction(XPrediction),
    /// MeanFlow: the network predicts the average velocity between two times, for sampling in one step.
    Meanflow(MeanFlow),
    /// REPA-E: SiT's objective on the latents of an autoencoder that is trained jointly.
    RepaE(Box<JointTraining>),
}

impl Default for Objective {
    fn default() -> Self {
        Self::Velocity(Velocity::default())
    }
}

impl<'de> Deserialize<'de> for Objective {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// [`Objective`] with a required kind.
        #[derive(Deserialize)]
        #[serde(tag = "kind", rename_all = "kebab-case")]
        enum Tagged {
            Velocity(Velocity),
            XPrediction(XPrediction),
            Meanflow(MeanFlow),
            RepaE(Box<JointTraining>),
        }
        let mut settings = serde_json::Map::deserialize(deserializer)?;
        let has_kind = settings.contains_key("kind");
        settings.entry("kind").or_insert_with(|| "velocity".into());
        let tagged = serde_json::from_value(settings.into()).map_err(|error| {
            serde::de::Error::custom(match has_kind {
                true => error.to_string(),
                false => format!("{error} (the default of `kind` is velocity)"),
            })
        })?;
        Ok(match tagged {
            Tagged::Velocity(objective) => Self::Velocity(objective),
            Tagged::XPrediction(objective) => Self::XPrediction(objective),
            Tagged::Meanflow(objective) => Self::Meanflow(objective),
            Tagged::RepaE(objective) => Self::RepaE(objective),
        })
    }
}

/// A noised batch: the network's inputs and the target, with all random numbers of the step drawn.
pub(crate) enum NoisyInputs {
    /// The noised batch, and the network's labels after label dropout, `[B]`.
    Velocity(velocity::NoisyBatch, Tensor),
    XPrediction(x_prediction::NoisyBatch),
    Meanflow(meanflow::NoisyBatch),
}

impl NoisyInputs {
    /// Returns the tensors, for [`NoisyInputs::with_tensors`]. `None` for objectives that do not support it.
    pub(crate) fn tensors(&self) -> Option<Vec<Tensor>> {
        let tensors = match self {
            Self::Velocity(velocity::NoisyBatch { x, t, target }, labels) => [x, t, target, labels],
            Self::XPrediction(x_prediction::NoisyBatch {
                z,
                t,
                labels,
                target,
            }) => [z, t, target, labels],
            Self::Meanflow(_) => return None,
        };
        Some(tensors.map(Tensor::shallow_clone).into())
    }

    /// Returns inputs of the same kind with other tensors. `tensors` begins with those that
    /// [`NoisyInputs::tensors`] lists; the remaining ones are returned too.
    pub(crate) fn with_tensors<'a>(&self, tensors: &'a [Tensor]) -> Option<(Self, &'a [Tensor])> {
        let ([noisy, t, target, labels], rest) = tensors.split_first_chunk::<4>()?;
        let [noisy, t, target, labels] =
            [noisy, t, target, labels].map(|tensor| tensor.shallow_clone());
        let inputs = match self {
            Self::Velocity(..) => {
                let x = noisy;
                Self::Velocity(velocity::NoisyBatch { x, t, target }, labels)
            }
            Self::XPrediction(_) => Self::XPrediction(x_prediction::NoisyBatch {
                z: noisy,
                t,
                labels,
                target,
            }),
            Self::Meanflow(_) => return None,
        };
        Some((inputs, rest))
    }
}

/// The result of a forward pass, for the backward pass and the alignment loss.
pub(crate) struct ForwardOutput {
    /// The objective's loss, a scalar.
    pub(crate) loss: Tensor,
    /// The mean squared error, a scalar without gradient. It is logged as the denoising loss.
    pub(crate) error: Tensor,
    /// The hidden tokens projected by each head, `[B, T, D]`.
    pub(crate) projected: Vec<Tensor>,
}

impl Objective {
    /// Returns the objective's name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Velocity(_) => "velocity",
            Self::XPrediction(_) => "x-prediction",
            Self::Meanflow(_) => "meanflow",
            Self::RepaE(_) => "repa-e",
        }
    }

    /// Checks the objective's settings.
    ///
    /// # Errors
    /// Names the first setting with an invalid value.
    pub fn validate(&self) -> Result<(), DiffusionError> {
        match self {
            Self::Velocity(_) => Ok(()),
            Self::XPrediction(objective) => objective.validate(),
            Self::Meanflow(objective) => objective.validate(),
            Self::RepaE(objective) => objective.validate(),
        }
    }

    /// Draws times and noise for images or latents `x0`, and which of `labels` are dropped. These are all
    /// random numbers of a forward pass except those of dropout.
    pub(crate) fn draw(
        &self,
        model: &Model,
        x0: &Tensor,
        labels: &Tensor,
        generator: &mut Generator,
    ) -> Result<NoisyInputs, TrainError> {
        Ok(match (self, &model.network) {
            (Self::Velocity(objective), Network::Sit(sit)) => {
                let noisy = objective.draw(x0, generator)?;
                let labels = sit.drop_labels(labels, Mode::Train(generator))?;
                NoisyInputs::Velocity(noisy, labels)
            }
            (Self::XPrediction(objective), Network::Jit(jit)) => NoisyInputs::XPrediction(
                objective.draw(x0, labels, jit.num_classes(), generator)?,
            ),
            (Self::Meanflow(objective), Network::MeanFlow(network)) => {
                NoisyInputs::Meanflow(objective.draw(network, x0, labels, generator)?)
            }
            (_, network) => return Err(self.mismatch(network)),
        })
    }

    /// Runs the network and the heads on `inputs`, and computes the loss. `generator` is for dropout.
    pub(crate) fn compute(
        &self,
        model: &Model,
        inputs: NoisyInputs,
        generator: &mut Generator,
        (device, precision): (Device, Option<Kind>),
    ) -> Result<ForwardOutput, TrainError> {
        // Losses are computed outside autocast, on float32 outputs, as upstream does.
        match (self, &model.network, inputs) {
            (
                Self::Velocity(objective),
                Network::Sit(sit),
                NoisyInputs::Velocity(noisy, labels),
            ) => {
                let (prediction, projected) = autocast::run(device, precision, || {
                    let output = sit.forward(&noisy.x, &noisy.t, &labels, Mode::Eval)?;
                    let projected = project(&model.heads, &output.hidden)?;
                    Ok::<_, TrainError>((output.prediction, projected))
                })??;
                ForwardOutput::from_error(&objective.loss(&prediction, &noisy)?, projected)
            }
            (Self::XPrediction(objective), Network::Jit(jit), NoisyInputs::XPrediction(noisy)) => {
                let (prediction, projected) = autocast::run(device, precision, || {
                    let mode = Mode::Train(generator);
                    let output = jit.forward(&noisy.z, &noisy.t, &noisy.labels, mode)?;
                    let projected = project(&model.heads, &output.hidden)?;
                    Ok::<_, TrainError>((output.prediction, projected))
                })??;
                ForwardOutput::from_error(&objective.loss(&prediction, &noisy)?, projected)
            }
            (
                Self::Meanflow(objective),
                Network::MeanFlow(network),
                NoisyInputs::Meanflow(noisy),
            ) => {
                let noisy = autocast::run(device, precision, || objective.guide(network, noisy))??;
                let (output, projected) = autocast::run(device, precision, || {
                    let output = objective.forward(network, &noisy)?;
                    let projected = project(&model.heads, &output.hidden)?;
                    Ok::<_, TrainError>((output, projected))
                })??;
                let loss = objective.loss(&output, &noisy)?;
                let elements = noisy.z.numel() as f64 / noisy.t.size1()? as f64;
                let error = loss.squared_error.f_div_scalar(elements)?;
                Ok(ForwardOutput {
                    loss: loss.value.f_mean(Kind::Float)?,
                    error: error.f_mean(Kind::Float)?,
                    projected,
                })
            }
            (_, network, _) => Err(self.mismatch(network)),
        }
    }

    /// Returns the error for a network of another objective. It cannot occur with a validated configuration.
    /// REPA-E does not get here, since it has its own passes.
    fn mismatch(&self, network: &Network) -> TrainError {
        TrainError::Objective {
            objective: self.name(),
            network: network.family(),
        }
    }

    /// Builds the sampler for networks that were trained with this objective.
    ///
    /// # Errors
    /// Names the first setting that the sampler refuses.
    pub(crate) fn sampler(&self, config: SamplerConfig) -> Result<AnySampler, DiffusionError> {
        Ok(match self {
            Self::Velocity(objective) => {
                AnySampler::Velocity(Sampler::new(config, objective.path)?)
            }
            Self::RepaE(joint) => {
                AnySampler::Velocity(Sampler::new(config, joint.velocity().path)?)
            }
            Self::XPrediction(objective) => AnySampler::Jit(JitSampler::new(config, *objective)?),
            Self::Meanflow(_) => {
                AnySampler::MeanFlow(MeanFlowSampler::new(MeanFlowSamplerConfig {
                    num_steps: config.num_steps,
                    cfg_scale: config.cfg_scale,
                })?)
            }
        })
    }
}

impl ForwardOutput {
    /// Creates the output for a loss that is the squared error of each sample, `[B]`.
    fn from_error(error: &Tensor, projected: Vec<Tensor>) -> Result<Self, TrainError> {
        let loss = error.f_mean(Kind::Float)?;
        Ok(Self {
            error: loss.detach(),
            loss,
            projected,
        })
    }
}

/// Projects the hidden tokens with each head.
pub(crate) fn project(heads: &[Head], hidden: &Tensor) -> Result<Vec<Tensor>, TrainError> {
    heads.iter().map(|head| Ok(head.forward(hidden)?)).collect()
}

/// The sampler of any objective.
#[derive(Debug)]
pub(crate) enum AnySampler {
    Velocity(Sampler),
    Jit(JitSampler),
    MeanFlow(MeanFlowSampler),
}

impl AnySampler {
    /// Draws images (or latents) from standard normal `noise` `[B, C, H, W]` for `labels` `[B]`. A sampler that adds
    /// noise in each step takes it from `step_noise`, `[B, C, H, W]` in float64. `check_interrupted` is called after
    /// each step; an error ends the sampling.
    pub(crate) fn sample(
        &self,
        network: &Network,
        noise: &Tensor,
        labels: &Tensor,
        mut step_noise: impl FnMut() -> Result<Tensor, DiffusionError>,
        check_interrupted: impl Fn() -> Result<(), DiffusionError>,
    ) -> Result<Tensor, TrainError> {
        let denoiser = network.denoiser();
        Ok(match (self, network) {
            (Self::Velocity(sampler), _) => sampler.sample_with(
                denoiser,
                noise,
                labels,
                |_| step_noise(),
                |_| check_interrupted(),
            )?,
            (Self::Jit(sampler), _) => {
                sampler.sample(denoiser, noise, labels, |_| check_interrupted())?
            }
            (Self::MeanFlow(sampler), Network::MeanFlow(network)) => {
                sampler.sample(network, noise, labels, |_| check_interrupted())?
            }
            (Self::MeanFlow(_), network) => {
                return Err(TrainError::Objective {
                    objective: "meanflow",
                    network: network.family(),
                });
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Objective, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_default_kind_is_velocity() {
        assert_eq!(parsed("").unwrap(), Objective::default());
        assert_eq!(parsed("path = 'linear'").unwrap(), Objective::default());
        let found = parsed("kind = 'x-prediction'\nnoise_scale = 2.0").unwrap();
        assert!(matches!(found, Objective::XPrediction(x) if x.noise_scale == 2.0));
        let found = parsed("kind = 'meanflow'\ncfg_omega = 0.2").unwrap();
        assert!(matches!(found, Objective::Meanflow(m) if m.cfg_omega == 0.2));
    }

    #[test]
    fn keys_of_another_kind_are_refused() {
        let error = parsed("cfg_omega = 0.2").unwrap_err();
        assert!(
            error.contains("cfg_omega") && error.contains("`kind` is velocity"),
            "{error}"
        );
        let error = parsed("kind = 'x-prediction'\npath = 'linear'").unwrap_err();
        assert!(
            error.contains("path") && error.contains("noise_scale"),
            "{error}"
        );
        let error = parsed("kind = 'diffusion'").unwrap_err();
        assert!(
            error.contains("diffusion") && error.contains("meanflow"),
            "{error}"
        );
    }

    #[test]
    fn a_written_objective_is_read_back() {
        for objective in [
            Objective::default(),
            Objective::XPrediction(XPrediction::default()),
            Objective::Meanflow(MeanFlow::default()),
        ] {
            let text = toml::to_string(&objective).unwrap();
            assert_eq!(parsed(&text).unwrap(), objective, "{text}");
        }
    }
}
