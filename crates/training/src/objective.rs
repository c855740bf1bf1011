//! The objectives that a run can have, and one pass of each.

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

/// `[objective]`: what is learnt. `kind` chooses: `velocity`, `x-prediction`, `meanflow` or `repa-e`;
/// without it, it is `velocity`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Objective {
    /// SiT's: the velocity on the path from images to noise.
    Velocity(Velocity),
    /// JiT's: the image itself, compared as a velocity.
    XPrediction(XPrediction),
    /// MeanFlow's: the average velocity between two times, for samples in one step.
    Meanflow(MeanFlow),
    /// REPA-E's: SiT's on the latents of an autoencoder that is trained with it.
    RepaE(Box<JointTraining>),
}

impl Default for Objective {
    fn default() -> Self {
        Self::Velocity(Velocity::default())
    }
}

impl<'de> Deserialize<'de> for Objective {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// As above, with the kind required.
        #[derive(Deserialize)]
        #[serde(tag = "kind", rename_all = "kebab-case")]
        enum Tagged {
            Velocity(Velocity),
            XPrediction(XPrediction),
            Meanflow(MeanFlow),
            RepaE(Box<JointTraining>),
        }
        let mut settings = serde_json::Map::deserialize(deserializer)?;
        let given = settings.contains_key("kind");
        settings.entry("kind").or_insert_with(|| "velocity".into());
        let tagged = serde_json::from_value(settings.into()).map_err(|error| {
            serde::de::Error::custom(match given {
                true => error.to_string(),
                false => format!("{error} (`kind` is velocity where it is not given)"),
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

/// A batch made noisy, and what is random in it.
pub(crate) enum Drawn {
    /// With the labels that the network is given, `[B]`.
    Velocity(velocity::NoisyBatch, Tensor),
    XPrediction(x_prediction::NoisyBatch),
    Meanflow(meanflow::NoisyBatch),
}

impl Drawn {
    /// Its tensors, where they can be replaced by others ([`Drawn::of`]).
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

    /// As `self`, of the first tensors of a list that begins as [`Drawn::tensors`] does; and the rest of it.
    pub(crate) fn of<'a>(&self, tensors: &'a [Tensor]) -> Option<(Self, &'a [Tensor])> {
        let ([point, t, target, labels], rest) = tensors.split_first_chunk::<4>()?;
        let [point, t, target, labels] =
            [point, t, target, labels].map(|tensor| tensor.shallow_clone());
        let drawn = match self {
            Self::Velocity(..) => {
                let x = point;
                Self::Velocity(velocity::NoisyBatch { x, t, target }, labels)
            }
            Self::XPrediction(_) => Self::XPrediction(x_prediction::NoisyBatch {
                z: point,
                t,
                labels,
                target,
            }),
            Self::Meanflow(_) => return None,
        };
        Some((drawn, rest))
    }
}

/// What a pass over a batch leaves for the backward pass and for the alignment loss.
pub(crate) struct Pass {
    /// What is minimised, a scalar.
    pub(crate) loss: Tensor,
    /// What is logged as the denoising loss, a scalar without gradient: the mean squared error.
    pub(crate) error: Tensor,
    /// The hidden tokens through each head, `[B, T, D]`.
    pub(crate) projected: Vec<Tensor>,
}

impl Objective {
    /// Its name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Velocity(_) => "velocity",
            Self::XPrediction(_) => "x-prediction",
            Self::Meanflow(_) => "meanflow",
            Self::RepaE(_) => "repa-e",
        }
    }

    /// Checks its own settings.
    ///
    /// # Errors
    /// Names the first setting with a value it may not have.
    pub fn validate(&self) -> Result<(), DiffusionError> {
        match self {
            Self::Velocity(_) => Ok(()),
            Self::XPrediction(objective) => objective.validate(),
            Self::Meanflow(objective) => objective.validate(),
            Self::RepaE(objective) => objective.validate(),
        }
    }

    /// Draws times and noise for images `x0`, and which of `labels` are dropped: all that is random in a
    /// pass but dropout.
    pub(crate) fn draw(
        &self,
        model: &Model,
        x0: &Tensor,
        labels: &Tensor,
        generator: &mut Generator,
    ) -> Result<Drawn, TrainError> {
        Ok(match (self, &model.network) {
            (Self::Velocity(objective), Network::Sit(sit)) => {
                let noisy = objective.draw(x0, generator)?;
                let labels = sit.drop_labels(labels, Mode::Train(generator))?;
                Drawn::Velocity(noisy, labels)
            }
            (Self::XPrediction(objective), Network::Jit(jit)) => {
                Drawn::XPrediction(objective.draw(x0, labels, jit.num_classes(), generator)?)
            }
            (Self::Meanflow(objective), Network::MeanFlow(network)) => {
                Drawn::Meanflow(objective.draw(network, x0, labels, generator)?)
            }
            (_, network) => return Err(self.mismatch(network)),
        })
    }

    /// Runs the network and the heads on what was drawn, and compares. `generator` is for dropout.
    pub(crate) fn compute(
        &self,
        model: &Model,
        drawn: Drawn,
        generator: &mut Generator,
        (device, precision): (Device, Option<Kind>),
    ) -> Result<Pass, TrainError> {
        // Losses are computed outside autocast, on float32 outputs, as upstream does.
        match (self, &model.network, drawn) {
            (Self::Velocity(objective), Network::Sit(sit), Drawn::Velocity(noisy, labels)) => {
                let (prediction, projected) = autocast::run(device, precision, || {
                    let output = sit.forward(&noisy.x, &noisy.t, &labels, Mode::Eval)?;
                    let projected = project(&model.heads, &output.hidden)?;
                    Ok::<_, TrainError>((output.prediction, projected))
                })??;
                Pass::of_error(&objective.loss(&prediction, &noisy)?, projected)
            }
            (Self::XPrediction(objective), Network::Jit(jit), Drawn::XPrediction(noisy)) => {
                let (prediction, projected) = autocast::run(device, precision, || {
                    let mode = Mode::Train(generator);
                    let output = jit.forward(&noisy.z, &noisy.t, &noisy.labels, mode)?;
                    let projected = project(&model.heads, &output.hidden)?;
                    Ok::<_, TrainError>((output.prediction, projected))
                })??;
                Pass::of_error(&objective.loss(&prediction, &noisy)?, projected)
            }
            (Self::Meanflow(objective), Network::MeanFlow(network), Drawn::Meanflow(noisy)) => {
                let noisy = autocast::run(device, precision, || objective.guide(network, noisy))??;
                let (output, projected) = autocast::run(device, precision, || {
                    let output = objective.forward(network, &noisy)?;
                    let projected = project(&model.heads, &output.hidden)?;
                    Ok::<_, TrainError>((output, projected))
                })??;
                let loss = objective.loss(&output, &noisy)?;
                let numbers = noisy.z.numel() as f64 / noisy.t.size1()? as f64;
                let error = loss.squared_error.f_div_scalar(numbers)?;
                Ok(Pass {
                    loss: loss.value.f_mean(Kind::Float)?,
                    error: error.f_mean(Kind::Float)?,
                    projected,
                })
            }
            (_, network, _) => Err(self.mismatch(network)),
        }
    }

    /// The configuration was checked, and the network was built for it. REPA-E has passes of its own.
    fn mismatch(&self, network: &Network) -> TrainError {
        TrainError::Objective {
            objective: self.name(),
            network: network.family(),
        }
    }

    /// The sampler for networks that were trained so.
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

impl Pass {
    /// Of a loss that is itself the squared error of each sample, `[B]`.
    fn of_error(error: &Tensor, projected: Vec<Tensor>) -> Result<Self, TrainError> {
        let loss = error.f_mean(Kind::Float)?;
        Ok(Self {
            error: loss.detach(),
            loss,
            projected,
        })
    }
}

/// Hidden tokens through each head.
pub(crate) fn project(heads: &[Head], hidden: &Tensor) -> Result<Vec<Tensor>, TrainError> {
    heads.iter().map(|head| Ok(head.forward(hidden)?)).collect()
}

/// One of the samplers.
#[derive(Debug)]
pub(crate) enum AnySampler {
    Velocity(Sampler),
    Jit(JitSampler),
    MeanFlow(MeanFlowSampler),
}

impl AnySampler {
    /// Images (or latents) of standard normal `noise` `[B, C, H, W]` and `labels` `[B]`. A sampler
    /// that adds noise on its way takes it from `step_noise`, `[B, C, H, W]` in float64. `go_on` is asked after
    /// each step.
    pub(crate) fn sample(
        &self,
        network: &Network,
        noise: &Tensor,
        labels: &Tensor,
        mut step_noise: impl FnMut() -> Result<Tensor, DiffusionError>,
        go_on: impl Fn() -> Result<(), DiffusionError>,
    ) -> Result<Tensor, TrainError> {
        let denoiser = network.denoiser();
        Ok(match (self, network) {
            (Self::Velocity(sampler), _) => {
                sampler.sample_with(denoiser, noise, labels, |_| step_noise(), |_| go_on())?
            }
            (Self::Jit(sampler), _) => sampler.sample(denoiser, noise, labels, |_| go_on())?,
            (Self::MeanFlow(sampler), Network::MeanFlow(network)) => {
                sampler.sample(network, noise, labels, |_| go_on())?
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
    fn the_kind_is_velocity_unless_it_is_given() {
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
            error.contains("cfg_omega") && error.contains("velocity where"),
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
    fn an_objective_is_written_as_it_is_read() {
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
