//! The sampler that an objective and the settings of a sampler determine.

use diffusion::DiffusionError;
use diffusion::samplers::jit::JitSampler;
use diffusion::samplers::meanflow::{MeanFlowSampler, MeanFlowSamplerConfig};
use diffusion::samplers::{Sampler, SamplerConfig};

use super::objective::Objective;

/// The sampler of any objective.
#[derive(Debug)]
pub(crate) enum AnySampler {
    Velocity(Sampler),
    Jit(JitSampler),
    MeanFlow(MeanFlowSampler),
}

impl Objective {
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
