//! The key by which cells are grouped into cohorts.

use encoders::Precision;
use training::{
    AlignmentConfig, Autoencoder, Config, ConfigPath, DataConfig, EvaluateConfig, KlLayout,
    SampleConfig, TrainConfig,
};

use crate::planned::Planned;

/// Everything that affects what the cells of a cohort share: the batches, their latents and tokens, and the judges.
/// Cells with equal keys form one cohort.
///
/// The patterns below name every setting of the configuration, so that a new setting does not compile until it is
/// decided here whether it belongs to the key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CohortKey {
    /// Fingerprint of the training images.
    training: String,
    /// Fingerprint of the reference images.
    reference: String,
    settings: CohortSettings,
}

/// The part of [`CohortKey`] that comes from the configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CohortSettings {
    /// The images, how they are read, and the caches of their tokens and latents.
    data: DataConfig,
    batch_size: usize,
    /// Determines the order of the images.
    seed: u64,
    encoder: String,
    encoder_precision: Option<Precision>,
    /// A global setting of libtorch, which also affects the encoder.
    tf32: bool,
    /// A global setting of libtorch, which also affects the encoder.
    deterministic: bool,
    latents: Latents,
    evaluate: EvaluateConfig,
    /// Number of samples that are measured.
    samples: usize,
}

/// The source of what a cell's denoiser is trained on, before scaling.
#[derive(Debug, Clone, PartialEq)]
enum Latents {
    Pixels,
    /// Each cell trains its own autoencoder.
    Own,
    Frozen {
        layout: KlLayout,
        weights: ConfigPath,
    },
}

/// Groups items by their key. Groups and items stay in the order in which they appear.
pub(crate) fn group_by_key<K: PartialEq, T>(
    items: impl IntoIterator<Item = T>,
    key: impl Fn(&T) -> K,
) -> Vec<Vec<T>> {
    let mut groups: Vec<(K, Vec<T>)> = Vec::new();
    for item in items {
        let key = key(&item);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, group)) => group.push(item),
            None => groups.push((key, vec![item])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

impl CohortKey {
    pub(crate) fn of(planned: &Planned) -> Self {
        Self {
            training: planned.training.fingerprint().to_owned(),
            reference: planned.reference.fingerprint().to_owned(),
            settings: CohortSettings::of(&planned.cell.config),
        }
    }
}

impl CohortSettings {
    pub(crate) fn of(config: &Config) -> Self {
        let Config {
            data,
            model,
            objective: _,
            alignment,
            optimizer: _,
            train,
            sample,
            evaluate,
        } = config;
        // Heads, losses and the normalisation of tokens may differ between the cells of a cohort.
        let AlignmentConfig {
            encoder,
            encoder_precision,
            spatial_norm: _,
            head: _,
            losses: _,
            pool_tokens: _,
        } = alignment;
        // Encoders and autoencoders do not run in the precision of the trainer.
        let TrainConfig {
            steps: _,
            batch_size,
            accumulation: _,
            precision: _,
            tf32,
            deterministic,
            fused: _,
            cuda_graphs: _,
            reduce_dtype: _,
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
        let before = CohortSettings::of(&config);
        change(&mut config);
        CohortSettings::of(&config) != before
    }

    #[test]
    fn settings_of_batches_tokens_and_judges_separate_cells() {
        assert!(differs(
            |config| config.alignment.encoder_precision = Some(Precision::Bf16)
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
    fn settings_of_the_trainer_alone_do_not_separate_cells() {
        assert!(!differs(|config| config.alignment.losses.clear()));
        assert!(!differs(|config| config.optimizer.lr = 1.0));
        assert!(!differs(|config| config.train.steps = 7));
        assert!(!differs(|config| config.train.stop_on_collapse = true));
        assert!(!differs(|config| config.model.name = "SiT-XS/4".to_owned()));
    }
}
