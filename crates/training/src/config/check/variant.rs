//! The checks that model, objective, sampler and CUDA graphs fit each other.

use diffusion::samplers::Method;
use diffusion::{JitConfig, SitConfig};

use crate::config::autoencoder::Autoencoder;
use crate::config::invalid::InvalidConfig;
use crate::config::objective::Objective;
use crate::config::root::Config;

impl Config {
    /// Checks that model, objective and sampler fit each other.
    pub(super) fn check_variant(&self) -> Result<(), InvalidConfig> {
        let invalid = |key, reason: String| Err(InvalidConfig { key, reason });
        let name = &self.model.name;
        let method = self.sample.sampler.method;
        let jit = self.model.is_jit();
        let named = match jit {
            true => JitConfig::named(name).map(|config| config.depth),
            false => SitConfig::named(name).map(|config| config.depth),
        };
        let depth = match named {
            Ok(depth) => depth,
            Err(error) => return invalid("model.name", error.to_string()),
        };
        if let Some(block) = self.model.alignment_depth
            && !(1..=depth).contains(&block)
        {
            let allowed = format!("1 to {depth}, the blocks of {name}");
            return Err(InvalidConfig::new("model.alignment_depth", block, allowed));
        }
        match &self.objective {
            Objective::XPrediction(_) if !jit => {
                return invalid(
                    "objective.kind",
                    format!("is x-prediction, which trains a JiT; model.name is {name}"),
                );
            }
            objective @ (Objective::Velocity(_) | Objective::Meanflow(_) | Objective::RepaE(_))
                if jit =>
            {
                return invalid(
                    "objective.kind",
                    format!(
                        "is {}, which trains a SiT; {name} predicts images and needs x-prediction",
                        objective.name()
                    ),
                );
            }
            Objective::XPrediction(_) if self.model.autoencoder != Autoencoder::Identity => {
                return invalid(
                    "model.autoencoder",
                    "must be identity: JiT predicts pixels, not latents".to_owned(),
                );
            }
            Objective::RepaE(_) if !self.model.autoencoder.is_trained() => {
                return invalid(
                    "model.autoencoder",
                    "must be a table with kind = \"kl\" and train = true: REPA-E trains the \
                     autoencoder; for a frozen one, use the objective velocity"
                        .to_owned(),
                );
            }
            objective
                if self.model.autoencoder.is_trained()
                    && !matches!(objective, Objective::RepaE(_)) =>
            {
                return invalid(
                    "model.autoencoder.train",
                    format!(
                        "is true, but objective.kind {} does not train an autoencoder; repa-e does",
                        objective.name()
                    ),
                );
            }
            Objective::RepaE(joint) if self.data.resolution < joint.smallest_side() => {
                return invalid(
                    "data.resolution",
                    format!(
                        "is {}, but the autoencoder's losses need images of at least {} pixels; lower \
                         objective.discriminator_layers",
                        self.data.resolution,
                        joint.smallest_side()
                    ),
                );
            }
            Objective::XPrediction(_) if method == Method::EulerMaruyama => {
                return invalid(
                    "sample.sampler.method",
                    "is euler-maruyama, but JiT has no score for an SDE; allowed are euler and heun"
                        .to_owned(),
                );
            }
            Objective::Meanflow(_) if method != Method::Euler => {
                return invalid(
                    "sample.sampler.method",
                    "must be euler: MeanFlow steps along average velocities, which have neither a \
                     score for an SDE nor a corrector step"
                        .to_owned(),
                );
            }
            _ => {}
        }
        self.objective.validate().map_err(|error| InvalidConfig {
            key: "objective",
            reason: format!("is invalid: {error}"),
        })
    }

    /// Checks that a step can be recorded as a CUDA graph, if `train.cuda_graphs` is set: it must be a single
    /// pass that draws no random numbers.
    pub(super) fn check_graphs(&self) -> Result<(), InvalidConfig> {
        let model = &self.model;
        let obstacle = match &self.objective {
            _ if !self.train.cuda_graphs => return Ok(()),
            Objective::Meanflow(_) | Objective::RepaE(_) => {
                format!("objective.kind is {}", self.objective.name())
            }
            _ if self.train.accumulation > 1 => {
                format!("train.accumulation is {}", self.train.accumulation)
            }
            _ if model.attn_dropout > 0.0 => {
                format!("model.attn_dropout is {}", model.attn_dropout)
            }
            _ if model.proj_dropout > 0.0 => {
                format!("model.proj_dropout is {}", model.proj_dropout)
            }
            _ => return Ok(()),
        };
        Err(InvalidConfig {
            key: "train.cuda_graphs",
            reason: format!(
                "is true, but {obstacle}: CUDA graphs support velocity and x-prediction, without dropout \
                 and with train.accumulation = 1"
            ),
        })
    }
}
