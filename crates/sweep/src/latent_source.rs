use data::Dataset;
use encoders::feature_cache::{CacheError, FeatureCache};
use tch::{Device, Tensor};
use thiserror::Error;
use training::{Autoencoder, AutoencoderModel, CheckpointError, Config, DeviceBatch, TrainError};

use evaluation::autoencoder_files::cache_of;
use evaluation::encoder_bank::EncoderBank;

/// Where the moments of a cohort's latents come from: nowhere, where it diffuses pixels or trains
/// its autoencoder; the frozen autoencoder; or a cache. They are the same for all of its cells,
/// which draw their noise themselves.
pub(crate) enum LatentSource {
    None,
    Autoencoder(Box<AutoencoderModel>),
    Cache {
        cache: Box<FeatureCache>,
        device: Device,
    },
}

/// Why there are no latents.
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
    /// The autoencoder of `config` for the images of `dataset`, or its cache, where one is named.
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
        // Samples need the decoder at the end: that it fits is known before the training.
        drop(AutoencoderModel::load(config, Device::Cpu)?);
        let Some(key) = bank.autoencoders().cache_key(config, dataset)? else {
            return Ok(Self::None);
        };
        Ok(Self::Cache {
            cache: Box::new(FeatureCache::open(folder, &key, config.data.flip)?),
            device: bank.device(),
        })
    }

    /// Whether a network runs for each batch.
    pub(crate) fn computes(&self) -> bool {
        matches!(self, Self::Autoencoder(_))
    }

    /// In a line, where they come from if not from the autoencoder.
    pub(crate) fn described(&self) -> Option<String> {
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
