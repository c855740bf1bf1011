//! What the cells of a cohort have in common.

use encoders::Precision;
use training::{
    AlignmentConfig, Autoencoder, Config, ConfigPath, DataConfig, EvaluateConfig, KlLayout,
    SampleConfig, TrainConfig,
};

use crate::planned::Planned;

/// Everything that shapes what a cohort's cells share: the batches, their latents and tokens, and the judges.
/// Cells whose values are equal form one cohort.
///
/// It is taken from a configuration by patterns that name every setting. A new setting does not compile until
/// it is said here whether it shapes what is shared.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shared {
    /// Fingerprints of the images of both splits.
    training: String,
    reference: String,
    settings: SharedSettings,
}

/// The part of [`Shared`] that is in the configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SharedSettings {
    /// Which images, how they are read, and where their tokens and latents are cached.
    data: DataConfig,
    batch_size: usize,
    /// The order of the images follows from it.
    seed: u64,
    encoder: String,
    encoder_precision: Precision,
    /// Switches of libtorch, under which the encoder runs too.
    tf32: bool,
    deterministic: bool,
    latents: Latents,
    evaluate: EvaluateConfig,
    /// Samples that the judges see.
    samples: usize,
}

/// What a cell's denoiser is trained on, before it is scaled.
#[derive(Debug, Clone, PartialEq)]
enum Latents {
    Pixels,
    /// Each cell encodes with an autoencoder of its own.
    Own,
    Frozen {
        layout: KlLayout,
        weights: ConfigPath,
    },
}

impl Shared {
    pub(crate) fn of(planned: &Planned) -> Self {
        Self {
            training: planned.training.fingerprint().to_owned(),
            reference: planned.reference.fingerprint().to_owned(),
            settings: SharedSettings::of(&planned.cell.config),
        }
    }
}

impl SharedSettings {
    pub(crate) fn of(config: &Config) -> Self {
        let Config {
            base: _,
            data,
            model,
            objective: _,
            alignment,
            optimizer: _,
            train,
            sample,
            evaluate,
        } = config;
        // Heads, losses and the normalisation of tokens belong to each cell's trainer.
        let AlignmentConfig {
            encoder,
            encoder_precision,
            spatial_norm: _,
            head: _,
            losses: _,
            pool_tokens: _,
        } = alignment;
        // Encoders and autoencoders have no part in a trainer's precision.
        let TrainConfig {
            steps: _,
            batch_size,
            accumulation: _,
            precision: _,
            tf32,
            deterministic,
            fused: _,
            cuda_graphs: _,
            seed,
            ema_decay: _,
            second_ema_decay: _,
            stop_on_collapse: _,
            log_every: _,
            log_speed: _,
            checkpoint_every: _,
            keep_checkpoints: _,
        } = train;
        // Each cell draws its own samples.
        let SampleConfig {
            sampler: _,
            grid: _,
            count,
            batch_size: _,
            seed: _,
        } = sample;
        Self {
            data: data.clone(),
            batch_size: *batch_size,
            seed: *seed,
            encoder: encoder.clone(),
            encoder_precision: *encoder_precision,
            tf32: *tf32,
            deterministic: *deterministic,
            latents: Latents::of(&model.autoencoder),
            evaluate: evaluate.clone(),
            samples: *count,
        }
    }
}

impl Latents {
    fn of(autoencoder: &Autoencoder) -> Self {
        match autoencoder {
            Autoencoder::Identity => Self::Pixels,
            Autoencoder::Kl(settings) if settings.train => Self::Own,
            Autoencoder::Kl(settings) => Self::Frozen {
                layout: settings.layout.clone(),
                weights: settings.weights.clone(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differs(change: impl FnOnce(&mut Config)) -> bool {
        let mut config = Config::default();
        config.alignment.encoder = "hog".to_owned();
        let before = SharedSettings::of(&config);
        change(&mut config);
        SharedSettings::of(&config) != before
    }

    #[test]
    fn what_shapes_batches_tokens_or_judges_separates_cells() {
        assert!(differs(
            |config| config.alignment.encoder_precision = Precision::Bf16
        ));
        assert!(differs(
            |config| config.alignment.encoder = "sift".to_owned()
        ));
        assert!(differs(|config| config.data.resolution = 128));
        assert!(differs(|config| config.data.flip ^= true));
        assert!(differs(|config| config.data.token_cache = "features".into()));
        assert!(differs(
            |config| config.data.image_column = "image".to_owned()
        ));
        assert!(differs(|config| config.train.batch_size = 8));
        assert!(differs(|config| config.train.seed = 1));
        assert!(differs(|config| config.train.tf32 = true));
        assert!(differs(|config| config.train.deterministic = true));
        assert!(differs(|config| config.sample.count = 3));
        assert!(differs(|config| config.evaluate.reference_images = 3));
    }

    #[test]
    fn what_only_concerns_a_trainer_does_not() {
        assert!(!differs(|config| config.alignment.losses.clear()));
        assert!(!differs(|config| config.optimizer.lr = 1.0));
        assert!(!differs(|config| config.train.steps = 7));
        assert!(!differs(|config| config.train.stop_on_collapse = true));
        assert!(!differs(|config| config.model.name = "SiT-XS/4".to_owned()));
    }
}
