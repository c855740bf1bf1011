//! Finds, identifies and loads the encoders and autoencoders of a sweep.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use data::Dataset;
use encoders::feature_cache::{self, CacheKey};
use encoders::{
    Encoder, EncoderError, EncoderSpec, Inception, LoadOptions, Precision, Registry, Status,
};
use tch::Device;
use training::Config;

use crate::autoencoder_files::AutoencoderFiles;
use crate::identity::contents_of;
pub use crate::identity::{IdentityError, device_kind};
use terminal::interruptible::interruptible;

/// Encoders by name, for one device.
pub struct EncoderBank {
    registry: Registry,
    autoencoders: AutoencoderFiles,
    device: Device,
}

impl EncoderBank {
    /// Returns the encoders of `registry`, which run on `device`.
    pub fn new(registry: Registry, device: Device) -> Self {
        Self {
            registry,
            autoencoders: AutoencoderFiles::default(),
            device,
        }
    }

    /// Returns which file of an encoder or of the autoencoder of `config` is missing and how to get it; `None` if all
    /// are installed.
    pub fn missing(&self, config: &Config) -> Option<String> {
        AutoencoderFiles::missing(config)
            .or_else(|| missing_reference(config))
            .or_else(|| self.missing_encoder(config))
    }

    fn missing_encoder(&self, config: &Config) -> Option<String> {
        let resolution = i64::from(config.data.resolution);
        let judge = Some(config.evaluate.fd_encoder.clone()).filter(|name| !name.is_empty());
        let names = config.alignment.encoders().into_iter().chain(judge);
        names
            .filter_map(|name| match self.registry.status_for(&name, resolution) {
                Ok(Status::Missing { hint }) => Some(format!("{name} is not installed; {hint}")),
                _ => None,
            })
            .next()
    }

    /// The registry that finds the files of encoders and of Inception.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Identifies the networks that measure samples: the encoder `evaluate.fd_encoder`, and Inception if it is
    /// requested and installed, with the file that it compares with.
    ///
    /// # Errors
    /// A sidecar or the file exists but cannot be read.
    pub fn judges_identity(&self, config: &Config) -> Result<String, IdentityError> {
        let evaluate = &config.evaluate;
        let encoder = std::slice::from_ref(&evaluate.fd_encoder);
        let mut identity = self.identity(encoder, config.data.resolution)?;
        if !evaluate.inception.is_empty()
            && let Some(inception) = Inception::identity(&self.registry)?
        {
            identity.push_str(&format!(" inception:{inception}"));
            let reference = &config.evaluate.reference;
            if !reference.is_empty() {
                let sum = self.autoencoders.sha256(reference)?;
                identity.push_str(&format!(" reference:{sum}"));
            }
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

    /// The specification of an installed encoder for images of `resolution` pixels.
    ///
    /// # Errors
    /// The encoder is not installed, its sidecar cannot be read, or it does not support such images.
    pub fn spec(&self, name: &str, resolution: u32) -> Result<EncoderSpec, EncoderError> {
        self.registry.spec(name, i64::from(resolution))
    }

    /// The key that a feature cache must have to replace encoder `name` on `dataset`, read with the settings of
    /// `config`.
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
        let precision = config.alignment.encoder_precision_on(self.device);
        Ok(CacheKey {
            data: dataset.fingerprint().to_owned(),
            samples: dataset.len(),
            resolution: data.resolution,
            background: format!("{:?}", data.background).to_lowercase(),
            ..CacheKey::of_encoder(&spec, identity.unwrap_or_default(), precision)
        })
    }

    /// Identifies the tokens that `config` trains on: the encoders, and the rounding of their feature caches. A float32
    /// cache that was written on the same kind of device changes no bit, so it is left out.
    ///
    /// # Errors
    /// A sidecar or a cache exists but cannot be read.
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

    /// Identifies encoders by their names and the checksums of their files for images of `resolution` pixels.
    ///
    /// # Errors
    /// A sidecar exists but cannot be read.
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

    /// Loads one encoder at the resolution and precision at which `config` aligns to it.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_for(&self, name: &str, config: &Config) -> Result<Box<dyn Encoder>, EncoderError> {
        let precision = config.alignment.encoder_precision_on(self.device);
        self.load(name, config.data.resolution, precision)
    }

    /// Loads one encoder for images of `resolution` pixels, cast to `precision`.
    ///
    /// # Errors
    /// The encoder is not installed, its file does not match its sidecar, or it does not support such images.
    pub fn load(
        &self,
        name: &str,
        resolution: u32,
        precision: Precision,
    ) -> Result<Box<dyn Encoder>, EncoderError> {
        self.loader(name, resolution, precision)()
    }

    /// As [`load`](Self::load), but returns `None` soon after `interrupted` is set: large files take long to read and
    /// check.
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

/// The folder in which the feature cache of an encoder is searched for; `None` if `config` names no folder.
pub fn cache_of(config: &Config, encoder: &str) -> Option<PathBuf> {
    let root = &config.data.token_cache;
    let named = !root.as_os_str().is_empty();
    named.then(|| feature_cache::folder_of(root, encoder, config.data.resolution))
}

/// Why the file of `evaluate.reference` cannot be used; `None` if there is one, or if none is named.
fn missing_reference(config: &Config) -> Option<String> {
    let path = &config.evaluate.reference;
    let is_missing = !path.is_empty() && !path.is_file();
    is_missing.then(|| {
        format!(
            "`evaluate.reference` is {}, but there is no such file; an .npz of statistics or images is needed, such as \
             ADM's VIRTUAL_imagenet256_labeled.npz",
            path.display()
        )
    })
}
