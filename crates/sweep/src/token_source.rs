//! The source of a cohort's patch tokens: encoders or feature caches.

use std::collections::HashMap;
use std::path::Path;

use data::Dataset;
use encoders::feature_cache::{CacheError, Contents, FeatureCache};
use encoders::{Encoder, EncoderError, Grid};
use tch::{Device, TchError, Tensor};
use thiserror::Error;
use training::{Config, DeviceBatch, EncoderShape};

use evaluation::encoder_bank::{EncoderBank, cache_of};

/// The source of a cohort's tokens: for each encoder, the encoder itself or its feature cache. If the tokens of the
/// whole data set fit into `data.token_memory_mib` on the CPU, each image is encoded once and its tokens are kept.
pub(crate) struct TokenSource {
    sources: Vec<Source>,
    device: Device,
}

enum Source {
    Encoder {
        encoder: Box<dyn Encoder>,
        /// Tokens of single images, `[1, T, D]`, by sample id and whether the image is mirrored; `None` if tokens are
        /// not kept.
        kept: Option<HashMap<(u64, bool), Tensor>>,
    },
    Cache(Box<FeatureCache>),
}

/// Why tokens could not be read or computed.
#[derive(Debug, Error)]
pub(crate) enum TokenError {
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Tch(#[from] TchError),
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
                _ => Source::Encoder {
                    encoder: bank.load_for(&name, config)?,
                    kept: None,
                },
            });
        }
        Ok(Self::new(sources, config, dataset.len(), bank.device()))
    }

    fn new(mut sources: Vec<Source>, config: &Config, images: u64, device: Device) -> Self {
        let floats: u64 = sources
            .iter()
            .map(|source| match source {
                Source::Encoder { encoder, .. } => {
                    (encoder.spec().grid.tokens() * encoder.spec().width) as u64
                }
                Source::Cache(_) => 0,
            })
            .sum();
        let variants = if config.data.flip { 2 } else { 1 };
        let bytes = images.saturating_mul(variants).saturating_mul(4 * floats);
        let fits = bytes <= config.data.token_memory_mib.saturating_mul(1 << 20);
        if fits && device == Device::Cpu {
            for source in &mut sources {
                if let Source::Encoder { kept, .. } = source {
                    *kept = Some(HashMap::new());
                }
            }
        }
        Self { sources, device }
    }

    /// Names, widths and grids of the encoders.
    pub(crate) fn shapes(&self) -> Vec<EncoderShape> {
        self.sources
            .iter()
            .map(|source| match source {
                Source::Encoder { encoder, .. } => {
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
            Source::Encoder { encoder, .. } => Some(encoder.as_ref()),
            Source::Cache(_) => None,
        })
    }

    /// Whether an encoder runs for each batch.
    pub(crate) fn computes(&self) -> bool {
        self.loaded().next().is_some()
    }

    /// A line that names the encoders whose tokens come from a cache; `None` if there are none.
    pub(crate) fn description(&self) -> Option<String> {
        let cached: Vec<String> = self
            .sources
            .iter()
            .filter_map(|source| match source {
                Source::Encoder { .. } => None,
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
                Source::Encoder {
                    encoder,
                    kept: None,
                } => Ok(encoder.encode(&batch.images)?.patch),
                Source::Encoder {
                    encoder,
                    kept: Some(kept),
                } => tokens_once(encoder.as_ref(), kept, batch),
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

/// Returns the tokens of a batch. Only images that are not in `kept` are encoded.
fn tokens_once(
    encoder: &dyn Encoder,
    kept: &mut HashMap<(u64, bool), Tensor>,
    batch: &DeviceBatch,
) -> Result<Tensor, TokenError> {
    let keys: Vec<(u64, bool)> = batch
        .ids
        .iter()
        .copied()
        .zip(batch.flipped.iter().copied())
        .collect();
    let new: Vec<i64> = (0..keys.len())
        .filter(|&index| !kept.contains_key(&keys[index]))
        .map(|index| index as i64)
        .collect();
    if !new.is_empty() {
        let images = batch
            .images
            .f_index_select(0, &Tensor::f_from_slice(&new)?)?;
        let tokens = encoder.encode(&images)?.patch;
        for (row, &index) in new.iter().enumerate() {
            // A copy, because a view would keep the tokens of the whole batch in memory.
            let row = Tensor::f_from_slice(&[row as i64])?;
            kept.insert(keys[index as usize], tokens.f_index_select(0, &row)?);
        }
    }
    let parts: Vec<&Tensor> = keys.iter().filter_map(|key| kept.get(key)).collect();
    Ok(Tensor::f_cat(&parts, 0)?)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use encoders::{LoadOptions, Registry};
    use tch::Kind;

    use super::*;

    fn source(name: &str, memory: u64) -> TokenSource {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../experiments/encoders");
        let encoder = Registry::new(&[folder]).load(name, &LoadOptions::default());
        let mut config = Config::default();
        config.data.token_memory_mib = memory;
        let source = Source::Encoder {
            encoder: encoder.unwrap(),
            kept: None,
        };
        TokenSource::new(vec![source], &config, 16, Device::Cpu)
    }

    /// Number of images whose tokens are kept; `None` if the source does not keep tokens.
    fn images_kept(source: &TokenSource) -> Option<usize> {
        match &source.sources[0] {
            Source::Encoder { kept, .. } => kept.as_ref().map(HashMap::len),
            Source::Cache(_) => None,
        }
    }

    fn batch(all: &Tensor, ids: &[u64]) -> DeviceBatch {
        let rows: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
        DeviceBatch {
            images: all.index_select(0, &Tensor::from_slice(&rows)),
            moments: None,
            labels: Tensor::zeros([ids.len() as i64], (Kind::Int64, Device::Cpu)),
            ids: ids.to_vec(),
            flipped: vec![false; ids.len()],
            cursor: data::Cursor::default(),
        }
    }

    #[test]
    fn kept_tokens_are_bitwise_equal_to_newly_encoded_ones() {
        let all = Tensor::randint(256, [16, 3, 32, 32], (Kind::Uint8, Device::Cpu));
        for name in ["hog", "sift", "efficientnet-lite0"] {
            let (mut keeping, mut encoding) = (source(name, 64), source(name, 0));
            assert_eq!(
                (images_kept(&keeping), images_kept(&encoding)),
                (Some(0), None)
            );
            // Overlapping batches of several sizes, so that new images are encoded in batches of other sizes.
            for ids in [
                &[0, 1, 2, 3, 4, 5, 6][..],
                &[6, 7, 2],
                &[9, 0, 8, 3, 15],
                &[14, 13],
            ] {
                let batch = batch(&all, ids);
                let kept = keeping.tokens(&batch).unwrap();
                assert_eq!(kept, encoding.tokens(&batch).unwrap(), "{name} {ids:?}");
            }
            assert_eq!(images_kept(&keeping), Some(13));
        }
    }
}
