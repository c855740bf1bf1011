//! The encoders and autoencoders of a sweep: what is there, and loading it.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use data::Dataset;
use encoders::feature_cache::{self, CacheError, CacheKey, Contents};
use encoders::{
    Encoder, EncoderError, EncoderSpec, Inception, LoadOptions, Precision, Registry, Status,
};
use tch::Device;
use thiserror::Error;
use training::{CheckpointError, Config};

use crate::autoencoder_files::AutoencoderFiles;
use console::interruptible::interruptible;

/// Why it is not known what a cell's inputs are: a file that is there cannot be read. Taken for an absent or other file,
/// it would make a finished cell begin anew.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// An encoder's sidecar.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// A feature cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An autoencoder's weights.
    #[error(transparent)]
    Weights(#[from] CheckpointError),
}

/// What a cache says of itself; `None` if there is none, or if it says nothing of use, which opening it names.
pub(crate) fn contents_of(folder: &Path) -> Result<Option<Contents>, CacheError> {
    match Contents::read(folder) {
        Err(CacheError::Damaged { .. }) => Ok(None),
        contents => contents,
    }
}

/// Encoders by name, for one device.
pub struct EncoderBank {
    registry: Registry,
    autoencoders: AutoencoderFiles,
    device: Device,
}

impl EncoderBank {
    /// The encoders of `registry`, to be run on `device`.
    pub fn new(registry: Registry, device: Device) -> Self {
        Self {
            registry,
            autoencoders: AutoencoderFiles::default(),
            device,
        }
    }

    /// Why `config` cannot run for want of an encoder's or the autoencoder's file: which, and how
    /// to get it.
    pub fn missing(&self, config: &Config) -> Option<String> {
        AutoencoderFiles::missing(config).or_else(|| self.missing_encoder(config))
    }

    fn missing_encoder(&self, config: &Config) -> Option<String> {
        let resolution = i64::from(config.data.resolution);
        let judge = Some(config.evaluate.fd_encoder.clone()).filter(|name| !name.is_empty());
        let names = config.alignment.encoders().into_iter().chain(judge);
        names
            .filter_map(|name| match self.registry.status_for(&name, resolution) {
                Ok(Status::Missing { hint }) => {
                    Some(format!("{name} is not on this machine; {hint}"))
                }
                _ => None,
            })
            .next()
    }

    /// Where the files of encoders, and of Inception, are looked for.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What makes the networks that measure samples what they are: the encoder `evaluate.fd_encoder`, and
    /// Inception where it is wanted and here.
    ///
    /// # Errors
    /// A sidecar is there and cannot be read.
    pub fn judges_identity(&self, config: &Config) -> Result<String, EncoderError> {
        let evaluate = &config.evaluate;
        let encoder = std::slice::from_ref(&evaluate.fd_encoder);
        let mut identity = self.identity(encoder, config.data.resolution)?;
        if !evaluate.inception.is_empty()
            && let Some(inception) = Inception::identity(&self.registry)?
        {
            identity.push_str(&format!(" inception:{inception}"));
        }
        Ok(identity)
    }

    /// The files of autoencoders.
    pub fn autoencoders(&self) -> &AutoencoderFiles {
        &self.autoencoders
    }

    /// The device that the encoders run on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// What an encoder that is here declares for images of `resolution` pixels.
    ///
    /// # Errors
    /// It is not there, its sidecar cannot be read, or it is not made for such images.
    pub fn spec(&self, name: &str, resolution: u32) -> Result<EncoderSpec, EncoderError> {
        self.registry.spec(name, i64::from(resolution))
    }

    /// What a feature cache must be of to stand for encoder `name` on `dataset`, as `config` reads
    /// it.
    ///
    /// # Errors
    /// As [`spec`](Self::spec).
    pub fn cache_key(
        &self,
        name: &str,
        config: &Config,
        dataset: &dyn Dataset,
    ) -> Result<CacheKey, EncoderError> {
        let data = &config.data;
        let spec = self.spec(name, data.resolution)?;
        let identity = self.registry.identity(name, i64::from(data.resolution))?;
        let precision = config.alignment.encoder_precision;
        Ok(CacheKey {
            data: dataset.fingerprint().to_owned(),
            samples: dataset.len(),
            resolution: data.resolution,
            background: format!("{:?}", data.background).to_lowercase(),
            ..CacheKey::of_encoder(&spec, identity.unwrap_or_default(), precision)
        })
    }

    /// What makes the tokens that `config` trains on what they are: the encoders, and how their
    /// feature caches round. A cache in float32 from the same kind of device changes no bit, so it
    /// does not count.
    ///
    /// # Errors
    /// A sidecar or a cache is there and cannot be read.
    pub fn tokens_identity(&self, config: &Config) -> Result<String, IdentityError> {
        let names = config.alignment.encoders();
        let mut identity = self.identity(&names, config.data.resolution)?;
        for name in &names {
            let Some(folder) = cache_of(config, name) else {
                continue;
            };
            let Some(contents) = contents_of(&folder)? else {
                continue;
            };
            let layout = contents.layout;
            if layout.stored != Precision::Fp32 {
                identity.push_str(&format!(" {name} rounded to {}", layout.stored.name()));
            }
            if layout.device != device_kind(self.device) {
                identity.push_str(&format!(" {name} from {}", layout.device));
            }
        }
        Ok(identity)
    }

    /// What makes these encoders what they are: names and checksums of their files for images of
    /// `resolution` pixels.
    ///
    /// # Errors
    /// A sidecar is there and cannot be read.
    pub fn identity(&self, names: &[String], resolution: u32) -> Result<String, EncoderError> {
        let parts = names
            .iter()
            .filter(|name| !name.is_empty())
            .map(|name| {
                let identity = self.registry.identity(name, i64::from(resolution))?;
                Ok(format!("{name}:{}", identity.as_deref().unwrap_or("?")))
            })
            .collect::<Result<Vec<_>, EncoderError>>()?;
        Ok(parts.join(","))
    }

    /// Loads one encoder as `config` aligns with it.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_for(&self, name: &str, config: &Config) -> Result<Box<dyn Encoder>, EncoderError> {
        let precision = config.alignment.encoder_precision;
        self.load(name, config.data.resolution, precision)
    }

    /// Loads one encoder for images of `resolution` pixels, cast to `precision`.
    ///
    /// # Errors
    /// It is not there, its file is not what its sidecar says, or it is not made for such images.
    pub fn load(
        &self,
        name: &str,
        resolution: u32,
        precision: Precision,
    ) -> Result<Box<dyn Encoder>, EncoderError> {
        self.loader(name, resolution, precision)()
    }

    /// As [`load`](Self::load), but `None` soon after `interrupted` is set: large files take long to read and check.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_until(
        &self,
        interrupted: &AtomicBool,
        name: &str,
        resolution: u32,
        precision: Precision,
    ) -> Result<Option<Box<dyn Encoder>>, EncoderError> {
        interruptible(interrupted, self.loader(name, resolution, precision)).transpose()
    }

    fn loader(
        &self,
        name: &str,
        resolution: u32,
        precision: Precision,
    ) -> impl FnOnce() -> Result<Box<dyn Encoder>, EncoderError> + Send + use<> {
        let options = LoadOptions {
            device: self.device,
            resolution: i64::from(resolution),
            precision,
        };
        let (registry, name) = (self.registry.clone(), name.to_owned());
        move || registry.load(&name, &options)
    }
}

/// Where the feature cache of an encoder is looked for; `None` if `config` names no folder.
pub fn cache_of(config: &Config, encoder: &str) -> Option<PathBuf> {
    let root = &config.data.token_cache;
    let named = !root.as_os_str().is_empty();
    named.then(|| feature_cache::folder_of(root, encoder, config.data.resolution))
}

/// The kind of a device, as feature caches record it.
pub fn device_kind(device: Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        _ => "other",
    }
}
