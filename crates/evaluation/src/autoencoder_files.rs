//! Finds the files of autoencoders and computes identities of the latents that depend on them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use data::Dataset;
use diffusion::DiffusionError;
use encoders::Precision;
use encoders::feature_cache::{CacheKey, Contents};
use tch::Device;
use training::{Autoencoder, CheckpointError, Config, Objective, TrainError, checkpoint};

use crate::identity::{IdentityError, contents_of, device_kind};

/// The files of autoencoders, with cached checksums so that each file is read once.
#[derive(Debug, Default)]
pub struct AutoencoderFiles {
    checksums: RefCell<HashMap<PathBuf, String>>,
}

impl AutoencoderFiles {
    /// Returns which file of the autoencoder of `config` is missing, with its key, and how to get it; `None` if all are
    /// installed.
    pub fn missing(config: &Config) -> Option<String> {
        if let Some(path) = weights(config).filter(|path| !path.is_file()) {
            return Some(TrainError::NoAutoencoder(path.to_owned()).to_string());
        }
        let (key, path) = files_of_losses(config).find(|(_, path)| !path.is_file())?;
        Some(match key {
            "objective.lpips" => {
                let path = path.to_owned();
                format!("`{key}`: {}", DiffusionError::NoLpips { path })
            }
            key => format!("`{key}` is {}, and there is no such file", path.display()),
        })
    }

    /// Identifies what the latents that `config` trains on depend on besides its settings: the SHA-256 of the
    /// autoencoder's weights and, if the autoencoder is trained, of the files that its losses read; and the rounding of
    /// a cache. A float32 cache that was written on the same kind of device changes no bit, so it is left out. Empty
    /// without an autoencoder.
    ///
    /// # Errors
    /// A file or a cache cannot be read.
    pub fn identity(&self, config: &Config, device: Device) -> Result<String, IdentityError> {
        let files = weights(config).map(|path| ("autoencoder", path));
        let mut identity = String::new();
        for (name, path) in files.into_iter().chain(files_of_losses(config)) {
            identity.push_str(&format!(" {name}:{}", self.sha256(path)?));
        }
        let cached = cache_of(config).map(contents_of).transpose()?.flatten();
        if let Some(Contents { layout, .. }) = cached {
            if layout.stored != Precision::Fp32 {
                identity.push_str(&format!(" moments rounded to {}", layout.stored.name()));
            }
            if layout.device != device_kind(device) {
                identity.push_str(&format!(" moments from {}", layout.device));
            }
        }
        Ok(identity)
    }

    /// The key that a cache of moments must have to replace the autoencoder of `config` on `dataset`;
    /// `None` without an autoencoder.
    ///
    /// # Errors
    /// The autoencoder's weights cannot be read.
    pub fn cache_key(
        &self,
        config: &Config,
        dataset: &dyn Dataset,
    ) -> Result<Option<CacheKey>, CheckpointError> {
        let Autoencoder::Kl(settings) = &config.model.autoencoder else {
            return Ok(None);
        };
        let data = &config.data;
        let identity = self.sha256(&settings.weights)?;
        let key = CacheKey::of_autoencoder(settings.layout.name(), identity, data.resolution);
        Ok(Some(CacheKey {
            data: dataset.fingerprint().to_owned(),
            samples: dataset.len(),
            background: format!("{:?}", data.background).to_lowercase(),
            ..key
        }))
    }

    /// The SHA-256 of a file.
    pub(crate) fn sha256(&self, path: &Path) -> Result<String, CheckpointError> {
        if let Some(known) = self.checksums.borrow().get(path) {
            return Ok(known.clone());
        }
        let sum = checkpoint::file_sha256(path)?;
        let mut checksums = self.checksums.borrow_mut();
        checksums.insert(path.to_owned(), sum.clone());
        Ok(sum)
    }
}

/// The file of the autoencoder's weights, if `config` names one.
fn weights(config: &Config) -> Option<&Path> {
    match &config.model.autoencoder {
        Autoencoder::Identity => None,
        Autoencoder::Kl(settings) => {
            let named = !settings.weights.is_empty();
            named.then_some(&*settings.weights)
        }
    }
}

/// The files that the losses of a jointly trained autoencoder read, with their configuration keys.
fn files_of_losses(config: &Config) -> impl Iterator<Item = (&'static str, &Path)> {
    let joint = match &config.objective {
        Objective::RepaE(joint) => Some(joint),
        _ => None,
    };
    joint.into_iter().flat_map(|joint| joint.files())
}

/// The folder of the cache of moments that `config` names; `None` if it names none or has no autoencoder.
pub fn cache_of(config: &Config) -> Option<&Path> {
    let folder = &config.data.latent_cache;
    let named = !folder.is_empty();
    (named && config.model.autoencoder != Autoencoder::Identity).then_some(&**folder)
}
