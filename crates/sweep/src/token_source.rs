//! The source of a cohort's patch tokens: encoders or feature caches.

use std::path::Path;

use data::Dataset;
use encoders::feature_cache::{CacheError, Contents, FeatureCache};
use encoders::{Encoder, EncoderError, Grid};
use tch::{Device, Tensor};
use thiserror::Error;
use training::{Config, DeviceBatch, EncoderShape};

use crate::keeping_encoder::KeepingEncoder;
use evaluation::encoder_bank::{EncoderBank, cache_of};

/// The source of a cohort's tokens: for each encoder, the encoder itself or its feature cache. If the tokens of the
/// whole data set fit into `data.token_memory_mib` on the CPU, each image is encoded once and its tokens are kept.
pub(crate) struct TokenSource {
    sources: Vec<Source>,
    device: Device,
}

enum Source {
    Encoder(Box<dyn Encoder>),
    Cache(Box<FeatureCache>),
}

/// Why tokens could not be read or computed.
#[derive(Debug, Error)]
pub(crate) enum TokenError {
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl TokenSource {
    /// Opens the sources for the encoders of `config` and the images of `dataset`. An encoder that has a feature cache is
    /// not loaded.
    pub(crate) fn open(
        bank: &EncoderBank,
        config: &Config,
        dataset: &dyn Dataset,
    ) -> Result<Self, TokenError> {
        let mut sources = Vec::new();
        for name in config.alignment.encoders() {
            let folder = cache_of(config, &name);
            let found = folder.as_deref().map(Contents::read).transpose()?;
            if let (Some(folder), Some(None)) = (&folder, &found) {
                tracing::warn!("{}", missing_cache(config, &name, folder));
            }
            sources.push(match (folder, found.flatten()) {
                (Some(folder), Some(_)) => {
                    let key = bank.cache_key(&name, config, dataset)?;
                    let cache = FeatureCache::open(&folder, &key, config.data.flip)?;
                    Source::Cache(Box::new(cache))
                }
                _ => Source::Encoder(bank.load_for(&name, config)?),
            });
        }
        Ok(Self::new(sources, config, dataset.len(), bank.device()))
    }

    fn new(mut sources: Vec<Source>, config: &Config, images: u64, device: Device) -> Self {
        // Numbers in the tokens of an image.
        let floats_of = |encoder: &dyn Encoder| {
            let spec = encoder.spec();
            (spec.grid.tokens() * spec.width) as u64
        };
        let floats = sources.iter().map(|source| match source {
            Source::Encoder(encoder) => floats_of(encoder.as_ref()),
            Source::Cache(_) => 0,
        });
        let floats: u64 = floats.sum();
        let variants = if config.data.flip { 2 } else { 1 };
        let bytes = images.saturating_mul(variants).saturating_mul(4 * floats);
        let limit = config.data.token_memory_mib.saturating_mul(1 << 20);
        if bytes <= limit && device == Device::Cpu {
            let keep = |source| match source {
                Source::Encoder(encoder) => {
                    // Each encoder's share of the limit is that of its tokens.
                    let share = limit / floats.max(1) * floats_of(encoder.as_ref());
                    let share = usize::try_from(share).unwrap_or(usize::MAX);
                    Source::Encoder(Box::new(KeepingEncoder::new(encoder, share)))
                }
                cache @ Source::Cache(_) => cache,
            };
            sources = sources.into_iter().map(keep).collect();
        }
        Self { sources, device }
    }

    /// Names, widths and grids of the encoders.
    pub(crate) fn shapes(&self) -> Vec<EncoderShape> {
        self.sources
            .iter()
            .map(|source| match source {
                Source::Encoder(encoder) => {
                    let spec = encoder.spec();
                    shape(&spec.name, spec.width, spec.grid)
                }
                Source::Cache(cache) => {
                    let layout = cache.layout();
                    shape(&cache.key().encoder, layout.width, layout.grid)
                }
            })
            .collect()
    }

    /// The encoders that were loaded.
    pub(crate) fn loaded(&self) -> impl Iterator<Item = &dyn Encoder> {
        self.sources.iter().filter_map(|source| match source {
            Source::Encoder(encoder) => Some(encoder.as_ref()),
            Source::Cache(_) => None,
        })
    }

    /// Whether an encoder runs for each batch.
    pub(crate) fn computes(&self) -> bool {
        self.loaded().next().is_some()
    }

    /// The caches, if all tokens come from caches.
    pub(crate) fn caches(&self) -> Option<Vec<&FeatureCache>> {
        let caches = self.sources.iter().map(|source| match source {
            Source::Encoder(_) => None,
            Source::Cache(cache) => Some(cache.as_ref()),
        });
        caches.collect()
    }

    /// A line that names the encoders whose tokens come from a cache; `None` if there are none.
    pub(crate) fn description(&self) -> Option<String> {
        let cached: Vec<String> = self
            .sources
            .iter()
            .filter_map(|source| match source {
                Source::Encoder(_) => None,
                Source::Cache(cache) => Some(format!(
                    "{} ({})",
                    cache.key().encoder,
                    cache.layout().stored.name()
                )),
            })
            .collect();
        (!cached.is_empty())
            .then(|| format!("tokens from the feature cache: {}", cached.join(", ")))
    }

    /// The patch tokens `[B, T, D]` of a batch, for each encoder.
    pub(crate) fn tokens(&mut self, batch: &DeviceBatch) -> Result<Vec<Tensor>, TokenError> {
        self.sources
            .iter_mut()
            .map(|source| match source {
                Source::Cache(cache) => {
                    Ok(cache.tokens(&batch.ids, &batch.flipped, self.device)?.patch)
                }
                Source::Encoder(encoder) => Ok(encoder.encode(&batch.images)?.patch),
            })
            .collect()
    }
}

/// The warning that an encoder runs although `data.token_cache` is set.
fn missing_cache(config: &Config, encoder: &str, folder: &Path) -> String {
    let root = &config.data.token_cache;
    let problem = match root.is_dir() {
        false => format!(
            "`data.token_cache` is {}, but there is no such folder",
            root.display()
        ),
        true => format!(
            "`data.token_cache` has no cache of {encoder} in {}",
            folder.display()
        ),
    };
    format!("{problem}: the encoder runs instead; `runner prepare features` creates the cache")
}

/// The shape of an encoder's tokens, for the trainer.
fn shape(name: &str, width: usize, grid: Grid) -> EncoderShape {
    EncoderShape {
        name: name.to_owned(),
        width: width as i64,
        grid: (grid.height as i64, grid.width as i64),
    }
}
