//! The settings of a sampler, for an objective.

use diffusion::DiffusionError;
use diffusion::samplers::jit::JitSampler;
use diffusion::samplers::meanflow::{MeanFlowSampler, MeanFlowSamplerConfig};
use diffusion::samplers::{Sampler, SamplerConfig};

use super::objective::Objective;

/// Returns the settings of MeanFlow's sampler among those of all samplers.
pub(crate) fn meanflow_sampler(config: SamplerConfig) -> MeanFlowSamplerConfig {
    MeanFlowSamplerConfig {
        num_steps: config.num_steps,
        cfg_scale: config.cfg_scale,
    }
}

impl Objective {
    /// Checks the settings of the sampler for networks that were trained with this objective.
    ///
    /// # Errors
    /// Names the first setting that the sampler refuses.
    pub(super) fn check_sampler(&self, config: SamplerConfig) -> Result<(), DiffusionError> {
        match self {
            Self::Velocity(objective) => Sampler::new(config, objective.path).map(drop),
            Self::RepaE(joint) => Sampler::new(config, joint.velocity().path).map(drop),
            Self::XPrediction(objective) => JitSampler::new(config, *objective).map(drop),
            Self::Meanflow(_) => MeanFlowSampler::new(meanflow_sampler(config)).map(drop),
        }
    }
}
