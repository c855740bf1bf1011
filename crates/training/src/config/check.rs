//! What the types of a configuration cannot say: ranges, and settings that only make sense together.

use diffusion::samplers::Method;
use diffusion::{JitConfig, SitConfig};

use super::{Autoencoder, Config};
use crate::Objective;

impl Config {
    /// Checks what the types cannot: ranges, and settings that only make sense together.
    ///
    /// # Errors
    /// The key, what it is, and what is allowed.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let positive = [
            ("data.resolution", u64::from(self.data.resolution)),
            ("data.prefetch", self.data.prefetch as u64),
            ("train.steps", self.train.steps),
            ("train.batch_size", self.train.batch_size as u64),
            ("train.accumulation", self.train.accumulation as u64),
            ("train.log_every", self.train.log_every),
            ("train.checkpoint_every", self.train.checkpoint_every),
            ("train.keep_checkpoints", self.train.keep_checkpoints as u64),
            ("sample.batch_size", self.sample.batch_size as u64),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(InvalidConfig::new(key, value, "at least 1"));
            }
        }
        let ranges = [
            (
                "data.max_corrupt_share",
                self.data.max_corrupt_share,
                0.0,
                1.0,
            ),
            ("model.label_dropout", self.model.label_dropout, 0.0, 1.0),
            ("train.ema_decay", self.train.ema_decay, 0.0, 1.0),
            (
                "train.second_ema_decay",
                self.train.second_ema_decay.unwrap_or(0.0),
                0.0,
                1.0,
            ),
            (
                "optimizer.blr",
                self.optimizer.blr.unwrap_or(0.0),
                0.0,
                f64::MAX,
            ),
            ("optimizer.min_lr", self.optimizer.min_lr, 0.0, f64::MAX),
            ("optimizer.lr", self.optimizer.lr, 0.0, f64::MAX),
            (
                "optimizer.weight_decay",
                self.optimizer.weight_decay,
                0.0,
                f64::MAX,
            ),
            (
                "optimizer.max_grad_norm",
                self.optimizer.max_grad_norm,
                f64::MIN_POSITIVE,
                f64::MAX,
            ),
        ];
        for (key, value, low, high) in ranges {
            if !(low..=high).contains(&value) {
                let allowed = if high == f64::MAX {
                    "a finite number, not negative".to_owned()
                } else {
                    format!("{low} to {high}")
                };
                return Err(InvalidConfig::new(key, value, allowed));
            }
        }
        // Beyond these the first update is a division by 0.
        let (beta1, beta2) = self.optimizer.betas;
        for (key, beta) in [("optimizer.betas[0]", beta1), ("optimizer.betas[1]", beta2)] {
            if !(0.0..1.0).contains(&(beta as f32)) {
                return Err(InvalidConfig::new(key, beta, "at least 0 and below 1"));
            }
        }
        let eps = self.optimizer.eps;
        if !(f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX)).contains(&eps) {
            let allowed = "positive in float32, 1e-8 for example";
            return Err(InvalidConfig::new("optimizer.eps", eps, allowed));
        }
        let evaluate = &self.evaluate;
        let judged = !evaluate.fd_encoder.is_empty() || !evaluate.inception.is_empty();
        if evaluate.every > 0 && (!judged || self.sample.count == 0) {
            return Err(InvalidConfig::new(
                "evaluate.every",
                evaluate.every,
                "0 without evaluate.fd_encoder or evaluate.inception, and sample.count",
            ));
        }
        self.check_autoencoder()?;
        self.check_variant()?;
        if !self
            .train
            .batch_size
            .is_multiple_of(self.train.accumulation)
        {
            return Err(InvalidConfig::new(
                "train.accumulation",
                self.train.accumulation,
                format!("a divisor of train.batch_size, {}", self.train.batch_size),
            ));
        }
        self.check_graphs()?;
        if self.sample.count > 0 || self.sample.grid > 0 {
            self.objective
                .sampler(self.sample.sampler)
                .map_err(|error| InvalidConfig {
                    key: "sample.sampler",
                    reason: format!("has {error}"),
                })?;
        }
        Ok(())
    }

    /// Checks that a step is one pass that draws nothing on its way, if it is to be a CUDA graph.
    fn check_graphs(&self) -> Result<(), InvalidConfig> {
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
                "is true, but {obstacle}: graphs are for velocity and x-prediction, without dropout and \
                 with train.accumulation = 1"
            ),
        })
    }

    /// Checks the autoencoder's own settings, and that it takes the images.
    fn check_autoencoder(&self) -> Result<(), InvalidConfig> {
        let Autoencoder::Kl(settings) = &self.model.autoencoder else {
            return Ok(());
        };
        let invalid = |key, reason: String| InvalidConfig { key, reason };
        if settings.weights.as_os_str().is_empty() && !settings.train {
            return Err(invalid(
                "model.autoencoder.weights",
                "names no file, and an autoencoder that is not trained needs its weights"
                    .to_owned(),
            ));
        }
        if settings.train && !self.data.latent_cache.as_os_str().is_empty() {
            return Err(invalid(
                "data.latent_cache",
                "names a folder, but the autoencoder is trained: its latents change with it"
                    .to_owned(),
            ));
        }
        let layout = settings.layout.config();
        let refused = |error| invalid("model.autoencoder.layout", format!("has {error}"));
        layout.validate().map_err(refused)?;
        let side = i64::from(self.data.resolution);
        let of_side = layout.latent_shape(side, side);
        let [channels, ..] =
            of_side.map_err(|error| invalid("data.resolution", error.to_string()))?;
        for (key, values) in [
            ("model.autoencoder.scale", settings.scale.values()),
            ("model.autoencoder.bias", settings.bias.values()),
        ] {
            let fits = [1, channels].contains(&(values.len() as i64))
                && values.iter().all(|value| value.is_finite());
            if !fits {
                let allowed = format!("a finite number, or {channels} of them, one a channel");
                return Err(InvalidConfig::new(key, format!("{values:?}"), allowed));
            }
        }
        if settings.scale.values().contains(&0.0) {
            return Err(InvalidConfig::new(
                "model.autoencoder.scale",
                0,
                "anything but 0",
            ));
        }
        Ok(())
    }

    /// Checks that model, objective and sampler go together.
    fn check_variant(&self) -> Result<(), InvalidConfig> {
        let invalid = |key, reason: String| Err(InvalidConfig { key, reason });
        let name = &self.model.name;
        let method = self.sample.sampler.method;
        let jit = name.to_lowercase().starts_with("jit");
        let named = match jit {
            true => JitConfig::named(name).map(|_| ()),
            false => SitConfig::named(name).map(|_| ()),
        };
        if let Err(error) = named {
            return invalid("model.name", error.to_string());
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
                        "is {}, which trains a SiT; {name} predicts images: x-prediction",
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
                     autoencoder; with a fixed one, the objective is velocity"
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
                        "is {}, but the autoencoder's losses take images from {} pixels on; lower \
                         objective.discriminator_layers",
                        self.data.resolution,
                        joint.smallest_side()
                    ),
                );
            }
            Objective::XPrediction(_) if method == Method::EulerMaruyama => {
                return invalid(
                    "sample.sampler.method",
                    "is euler-maruyama, but JiT has no score to add noise by; allowed are euler \
                     and heun"
                        .to_owned(),
                );
            }
            Objective::Meanflow(_) if method != Method::Euler => {
                return invalid(
                    "sample.sampler.method",
                    "must be euler: MeanFlow steps by average velocities, which have neither a \
                     score for an SDE nor a corrector"
                        .to_owned(),
                );
            }
            _ => {}
        }
        self.objective.validate().map_err(|error| InvalidConfig {
            key: "objective",
            reason: format!("has {error}"),
        })
    }
}

/// A setting out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("`{key}` {reason}")]
pub struct InvalidConfig {
    /// Dotted key.
    pub key: &'static str,
    /// What it is and what is allowed.
    pub reason: String,
}

impl InvalidConfig {
    fn new(
        key: &'static str,
        found: impl std::fmt::Display,
        allowed: impl std::fmt::Display,
    ) -> Self {
        Self {
            key,
            reason: format!("is {found}, allowed is {allowed}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_whose_first_update_is_not_a_number_are_refused() {
        let refused = |betas, eps| {
            let mut config = Config::default();
            config.optimizer.betas = betas;
            config.optimizer.eps = eps;
            config.validate().err().map(|error| error.to_string())
        };
        assert_eq!(refused((0.0, 0.999), 1e-8), None);
        for (betas, eps, key) in [
            ((1.0, 0.999), 1e-8, "optimizer.betas[0]"),
            // It rounds to 1.
            ((0.9, 1.0 - 1e-9), 1e-8, "optimizer.betas[1]"),
            ((0.9, -0.1), 1e-8, "optimizer.betas[1]"),
            ((0.9, 0.999), 0.0, "optimizer.eps"),
            ((0.9, 0.999), 1e-50, "optimizer.eps"),
            ((0.9, 0.999), f64::NAN, "optimizer.eps"),
        ] {
            let error = refused(betas, eps).unwrap();
            assert!(error.contains(key), "{error}");
        }
    }
}
