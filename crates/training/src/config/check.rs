//! Validates a configuration: ranges of settings, and settings that must fit each other.

use alignment::HeadConfig;
use diffusion::samplers::Method;
use diffusion::{JitConfig, SitConfig};

use super::autoencoder::Autoencoder;
use super::invalid::InvalidConfig;
use super::objective::Objective;
use super::root::Config;

impl Config {
    /// Checks the ranges of settings, and that settings fit each other.
    ///
    /// # Errors
    /// Names the first invalid key, its value, and the allowed values.
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
            (
                "sample.sampler.num_steps",
                self.sample.sampler.num_steps as u64,
            ),
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
        // With other values the first update divides by 0.
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
        let has_metric = !evaluate.fd_encoder.is_empty() || !evaluate.inception.is_empty();
        if evaluate.every > 0 && (!has_metric || self.sample.count == 0) {
            return Err(InvalidConfig::new(
                "evaluate.every",
                evaluate.every,
                "0 unless sample.count and evaluate.fd_encoder or evaluate.inception are set",
            ));
        }
        self.check_alignment()?;
        self.check_autoencoder()?;
        self.check_variant()?;
        self.check_resolution()?;
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
        self.check_guidance()?;
        if self.sample.count > 0 || self.sample.grid > 0 {
            self.objective
                .sampler(self.sample.sampler)
                .map_err(|error| InvalidConfig {
                    key: "sample.sampler",
                    reason: format!("is invalid: {error}"),
                })?;
        }
        Ok(())
    }

    /// Checks that guidance has the null class that it needs. Only label dropout trains the null class, whether or
    /// not the network has an embedding for it.
    pub(crate) fn check_guidance(&self) -> Result<(), InvalidConfig> {
        let sampler = &self.sample.sampler;
        if matches!(self.objective, Objective::Meanflow(_))
            && (sampler.guidance_low, sampler.guidance_high) != (0.0, 1.0)
        {
            return Err(InvalidConfig {
                key: "sample.sampler.guidance_low",
                reason: format!(
                    "and guidance_high are {} and {}, but MeanFlow's sampler applies guidance at all times: \
                     they must be 0 and 1",
                    sampler.guidance_low, sampler.guidance_high
                ),
            });
        }
        if self.model.label_dropout > 0.0 {
            return Ok(());
        }
        let without = |setting: String, instead: &str| InvalidConfig {
            key: "model.label_dropout",
            reason: format!(
                "is 0, but {setting}: guidance needs the null class, which only label dropout trains; set {instead}, \
                 or train with label dropout (0.1 in the paper)"
            ),
        };
        if sampler.cfg_scale > 1.0 {
            return Err(without(
                format!("sample.sampler.cfg_scale is {}", sampler.cfg_scale),
                "sample.sampler.cfg_scale = 1",
            ));
        }
        match &self.objective {
            Objective::Meanflow(meanflow) if meanflow.trains_with_guidance() => Err(without(
                format!(
                    "objective.cfg_omega is {} and objective.cfg_kappa is {}",
                    meanflow.cfg_omega, meanflow.cfg_kappa
                ),
                "objective.cfg_omega = 1 and objective.cfg_kappa = 0",
            )),
            _ => Ok(()),
        }
    }

    /// Checks that a step can be recorded as a CUDA graph, if `train.cuda_graphs` is set: it must be a single
    /// pass that draws no random numbers.
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
                "is true, but {obstacle}: CUDA graphs support velocity and x-prediction, without dropout \
                 and with train.accumulation = 1"
            ),
        })
    }

    /// Checks the autoencoder's settings, and that `data.latent_cache` fits them.
    fn check_autoencoder(&self) -> Result<(), InvalidConfig> {
        let invalid = |key, reason: String| InvalidConfig { key, reason };
        let Autoencoder::Kl(settings) = &self.model.autoencoder else {
            if !self.data.latent_cache.is_empty() {
                return Err(invalid(
                    "data.latent_cache",
                    "names a folder, but model.autoencoder is identity: without latents the cache \
                     has no effect"
                        .to_owned(),
                ));
            }
            return Ok(());
        };
        if settings.weights.is_empty() && !settings.train {
            return Err(invalid(
                "model.autoencoder.weights",
                "names no file, but an autoencoder that is not trained needs its weights"
                    .to_owned(),
            ));
        }
        if settings.train && !self.data.latent_cache.is_empty() {
            return Err(invalid(
                "data.latent_cache",
                "names a folder, but the autoencoder is trained: its latents change with it"
                    .to_owned(),
            ));
        }
        let layout = settings.layout.config();
        let refused = |error| {
            let reason = format!("is invalid: {error}");
            invalid("model.autoencoder.layout", reason)
        };
        layout.validate().map_err(refused)?;
        let channels = layout.latent_channels;
        for (key, values) in [
            ("model.autoencoder.scale", settings.scale.values()),
            ("model.autoencoder.bias", settings.bias.values()),
        ] {
            let fits = [1, channels].contains(&(values.len() as i64))
                && values.iter().all(|value| value.is_finite());
            if !fits {
                let allowed = format!("a finite number, or {channels} of them, one per channel");
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

    /// Checks that the resolution is a multiple of the patch side, times the autoencoder's downsampling.
    fn check_resolution(&self) -> Result<(), InvalidConfig> {
        let name = &self.model.name;
        let patch = match self.is_jit() {
            true => JitConfig::named(name).map(|config| config.patch_size),
            false => SitConfig::named(name).map(|config| config.patch_size),
        };
        let patch = patch.map_err(|error| InvalidConfig {
            key: "model.name",
            reason: error.to_string(),
        })?;
        let side = i64::from(self.data.resolution);
        let (multiple, explanation) = match &self.model.autoencoder {
            Autoencoder::Identity => (patch, format!("the patch side of model.name, {name}")),
            Autoencoder::Kl(settings) => {
                let factor = settings.layout.config().downsampling();
                let explanation = format!(
                    "the patch side of model.name, {name}, times {factor} of model.autoencoder"
                );
                (patch.saturating_mul(factor), explanation)
            }
        };
        if side % multiple != 0 {
            let allowed = format!("a multiple of {multiple}: {explanation}");
            return Err(InvalidConfig::new("data.resolution", side, allowed));
        }
        Ok(())
    }

    /// Checks head, losses and normalisation, also of a run without an encoder: a variant of it may have one.
    fn check_alignment(&self) -> Result<(), InvalidConfig> {
        let alignment = &self.alignment;
        if let HeadConfig::Mlp { width } = alignment.head
            && width < 1
        {
            return Err(InvalidConfig::new(
                "alignment.head.width",
                width,
                "at least 1",
            ));
        }
        if alignment.losses.is_empty() {
            return Err(InvalidConfig {
                key: "alignment.losses",
                reason: "is empty; for a run without alignment, set alignment.encoder = \"none\""
                    .to_owned(),
            });
        }
        for loss in &alignment.losses {
            if !loss.coefficient.is_finite() {
                return Err(InvalidConfig {
                    key: "alignment.losses",
                    reason: format!(
                        "has coefficient {}, must be a finite number",
                        loss.coefficient
                    ),
                });
            }
        }
        alignment
            .spatial_norm
            .validate()
            .map_err(|error| InvalidConfig {
                key: "alignment.spatial_norm",
                reason: format!("is invalid: {error}"),
            })
    }

    /// Whether the model is a JiT, by its name.
    fn is_jit(&self) -> bool {
        self.model.name.to_lowercase().starts_with("jit")
    }

    /// Checks that model, objective and sampler fit each other.
    fn check_variant(&self) -> Result<(), InvalidConfig> {
        let invalid = |key, reason: String| Err(InvalidConfig { key, reason });
        let name = &self.model.name;
        let method = self.sample.sampler.method;
        let jit = self.is_jit();
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
}

#[cfg(test)]
mod tests {
    use alignment::SpatialNorm;

    use super::*;
    use crate::KlSettings;

    fn refused(change: impl FnOnce(&mut Config)) -> Option<String> {
        let mut config = Config::default();
        change(&mut config);
        config.validate().err().map(|error| error.to_string())
    }

    #[test]
    fn a_resolution_that_does_not_fit_the_patches_is_refused_with_the_multiple() {
        let error_of = |model: &str, resolution, autoencoder| {
            refused(|config| {
                config.model.name = model.to_owned();
                config.model.autoencoder = autoencoder;
                config.data.resolution = resolution;
            })
        };
        let kl = || {
            Autoencoder::Kl(KlSettings {
                weights: "vae.safetensors".into(),
                ..KlSettings::default()
            })
        };
        assert_eq!(error_of("SiT-XS/4", 36, Autoencoder::Identity), None);
        assert_eq!(error_of("SiT-B/2", 48, kl()), None);
        for (error, words) in [
            (
                error_of("SiT-XS/4", 33, Autoencoder::Identity),
                ["33", "multiple of 4", "SiT-XS/4"],
            ),
            // A multiple of the autoencoder's 8, but a patch has 2 x 2 latent pixels.
            (
                error_of("SiT-B/2", 40, kl()),
                ["40", "multiple of 16", "times 8"],
            ),
            (
                error_of("SiT-B/2", 41, kl()),
                ["41", "multiple of 16", "times 8"],
            ),
        ] {
            let error = error.unwrap();
            assert!(error.starts_with("`data.resolution`"), "{error}");
            for word in words {
                assert!(error.contains(word), "no {word} in {error}");
            }
        }
    }

    #[test]
    fn invalid_alignment_settings_are_refused() {
        let norm = |alpha, eps| {
            refused(|config| config.alignment.spatial_norm = SpatialNorm::ZScore { alpha, eps })
        };
        let head = |width| refused(|config| config.alignment.head = HeadConfig::Mlp { width });
        let loss =
            |coefficient| refused(|config| config.alignment.losses[0].coefficient = coefficient);
        for good in [norm(0.6, 1e-6), head(1), loss(0.0), loss(-1.0)] {
            assert_eq!(good, None);
        }
        for (error, key) in [
            (
                norm(f64::NAN, 1e-6),
                "`alignment.spatial_norm` is invalid: alpha",
            ),
            (
                norm(f64::INFINITY, 1e-6),
                "`alignment.spatial_norm` is invalid: alpha",
            ),
            (norm(0.6, 0.0), "`alignment.spatial_norm` is invalid: eps"),
            (norm(0.6, -1.0), "`alignment.spatial_norm` is invalid: eps"),
            (
                norm(0.6, f64::NAN),
                "`alignment.spatial_norm` is invalid: eps",
            ),
            (head(0), "`alignment.head.width` is 0"),
            (head(-3), "`alignment.head.width` is -3"),
            (loss(f64::NAN), "`alignment.losses` has coefficient NaN"),
            (
                loss(f64::INFINITY),
                "`alignment.losses` has coefficient inf",
            ),
            (
                refused(|config| config.alignment.losses.clear()),
                "`alignment.losses` is empty",
            ),
        ] {
            let error = error.unwrap();
            assert!(error.starts_with(key), "{error}");
        }
    }

    #[test]
    fn settings_without_effect_or_out_of_range_are_refused() {
        for (error, words) in [
            (
                refused(|config| config.data.latent_cache = "latents".into()),
                ["`data.latent_cache`", "identity"],
            ),
            (
                refused(|config| config.model.alignment_depth = Some(13)),
                ["`model.alignment_depth`", "1 to 12"],
            ),
            (
                refused(|config| {
                    config.sample.sampler.num_steps = 0;
                    (config.sample.grid, config.sample.count) = (0, 0);
                }),
                ["`sample.sampler.num_steps`", "at least 1"],
            ),
        ] {
            let error = error.unwrap();
            for word in words {
                assert!(error.contains(word), "no {word} in {error}");
            }
        }
    }

    #[test]
    fn guidance_without_label_dropout_is_refused_for_every_objective() {
        let variant = |objective: &Objective| {
            let mut config = Config {
                objective: objective.clone(),
                ..Config::default()
            };
            config.sample.sampler.method = Method::Euler;
            match objective {
                Objective::XPrediction(_) => config.model.name = "JiT-B/16".to_owned(),
                Objective::RepaE(_) => {
                    config.model.autoencoder = Autoencoder::Kl(KlSettings {
                        train: true,
                        ..KlSettings::default()
                    });
                }
                _ => {}
            }
            config
        };
        let joint = crate::JointTraining {
            lpips: "lpips.safetensors".into(),
            ..Default::default()
        };
        for objective in [
            Objective::default(),
            Objective::XPrediction(Default::default()),
            Objective::Meanflow(Default::default()),
            Objective::RepaE(Box::new(joint)),
        ] {
            let mut config = variant(&objective);
            config.sample.sampler.cfg_scale = 1.5;
            assert_eq!(config.validate(), Ok(()), "{}", objective.name());
            config.model.label_dropout = 0.0;
            // Also for a run that draws no samples itself, since its checkpoints will be sampled from.
            for count in [0, 8] {
                (config.sample.count, config.sample.grid) = (count, 0);
                let error = config.validate().unwrap_err().to_string();
                for words in [
                    "`model.label_dropout` is 0",
                    "sample.sampler.cfg_scale is 1.5",
                ] {
                    assert!(error.contains(words), "{}: {error}", objective.name());
                }
            }
            config.sample.sampler.cfg_scale = 1.0;
            assert_eq!(config.validate(), Ok(()), "{}", objective.name());
        }
    }

    #[test]
    fn guidance_in_training_without_label_dropout_is_refused() {
        let guided = |omega, kappa, label_dropout| {
            refused(|config| {
                config.objective = Objective::Meanflow(diffusion::objective::meanflow::MeanFlow {
                    cfg_omega: omega,
                    cfg_kappa: kappa,
                    ..Default::default()
                });
                config.sample.sampler.method = Method::Euler;
                config.model.label_dropout = label_dropout;
            })
        };
        assert_eq!(guided(0.2, 0.92, 0.1), None);
        assert_eq!(guided(1.0, 0.0, 0.0), None);
        for (omega, kappa) in [(0.2, 0.92), (1.0, 0.5), (2.0, 0.0)] {
            let error = guided(omega, kappa, 0.0).unwrap();
            for words in ["`model.label_dropout` is 0", "objective.cfg_omega"] {
                assert!(error.contains(words), "{error}");
            }
        }
    }

    #[test]
    fn a_guidance_interval_is_refused_for_meanflow() {
        let error = refused(|config| {
            config.objective = Objective::Meanflow(Default::default());
            config.sample.sampler.method = Method::Euler;
            config.sample.sampler.guidance_high = 0.7;
        });
        let error = error.unwrap();
        assert!(
            error.starts_with("`sample.sampler.guidance_low`"),
            "{error}"
        );
        assert!(
            error.contains("0.7") && error.contains("MeanFlow"),
            "{error}"
        );
    }

    #[test]
    fn optimizer_settings_that_divide_by_zero_are_refused() {
        let refused = |betas, eps| {
            let mut config = Config::default();
            config.optimizer.betas = betas;
            config.optimizer.eps = eps;
            config.validate().err().map(|error| error.to_string())
        };
        assert_eq!(refused((0.0, 0.999), 1e-8), None);
        for (betas, eps, key) in [
            ((1.0, 0.999), 1e-8, "optimizer.betas[0]"),
            // In float32 this rounds to 1.
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
