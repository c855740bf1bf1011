//! The source of a cohort's latents: the frozen autoencoder or a cache of its moments.

use data::Dataset;
use encoders::feature_cache::{CacheError, FeatureCache};
use tch::{Device, Tensor};
use thiserror::Error;
use training::{Autoencoder, AutoencoderModel, CheckpointError, Config, DeviceBatch, TrainError};

use evaluation::autoencoder_files::cache_of;
use evaluation::encoder_bank::EncoderBank;

/// The source of the moments (mean and standard deviation) of a cohort's latents. The moments are the same for all
/// cells of the cohort; each cell draws its own noise.
pub(crate) enum LatentSource {
    /// The cohort trains on pixels, or each cell trains its own autoencoder.
    None,
    Autoencoder(Box<AutoencoderModel>),
    Cache {
        cache: Box<FeatureCache>,
        device: Device,
    },
}

/// Why latents could not be read or computed.
#[derive(Debug, Error)]
pub(crate) enum LatentError {
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Weights(#[from] CheckpointError),
    #[error(transparent)]
    Train(#[from] TrainError),
}

impl LatentSource {
    /// Opens the cache of latents of `dataset` if `config` names one, and otherwise loads the autoencoder of `config`.
    pub(crate) fn open(
        bank: &EncoderBank,
        config: &Config,
        dataset: &dyn Dataset,
    ) -> Result<Self, LatentError> {
        let autoencoder = &config.model.autoencoder;
        if *autoencoder == Autoencoder::Identity || autoencoder.is_trained() {
            return Ok(Self::None);
        }
        let Some(folder) = cache_of(config) else {
            let model = AutoencoderModel::load(config, bank.device())?;
            return Ok(Self::Autoencoder(Box::new(model)));
        };
        // Samples need the decoder after training. Loading it now finds wrong weights before the training.
        drop(AutoencoderModel::load(config, Device::Cpu)?);
        let Some(key) = bank.autoencoders().cache_key(config, dataset)? else {
            return Ok(Self::None);
        };
        Ok(Self::Cache {
            cache: Box::new(FeatureCache::open(folder, &key, config.data.flip)?),
            device: bank.device(),
        })
    }

    /// Whether the autoencoder runs for each batch.
    pub(crate) fn computes(&self) -> bool {
        matches!(self, Self::Autoencoder(_))
    }

    /// The cache, if latents come from one.
    pub(crate) fn cache(&self) -> Option<&FeatureCache> {
        match self {
            Self::Cache { cache, .. } => Some(cache),
            _ => None,
        }
    }

    /// A line that names the cache; `None` if the latents do not come from a cache.
    pub(crate) fn description(&self) -> Option<String> {
        match self {
            Self::Cache { cache, .. } => Some(format!(
                "latents from the cache: {} ({})",
                cache.key().encoder,
                cache.layout().stored.name()
            )),
            _ => None,
        }
    }

    /// Mean and standard deviation of the latents of a batch, `[B, 2 C, h, w]`.
    pub(crate) fn moments(&mut self, batch: &DeviceBatch) -> Result<Option<Tensor>, LatentError> {
        match self {
            Self::None => Ok(None),
            Self::Autoencoder(model) => Ok(model.moments(&batch.images)?),
            Self::Cache { cache, device } => {
                let moments = cache.moments(&batch.ids, &batch.flipped, *device)?;
                Ok(Some(moments))
            }
        }
    }
}
