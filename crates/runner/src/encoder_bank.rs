//! The encoders of a sweep: what is there, and loading it.

use encoders::{Encoder, EncoderError, LoadOptions, Precision, Registry, Status};
use tch::Device;
use training::{Config, EncoderShape};

/// Encoders by name, for one device.
pub struct EncoderBank {
    registry: Registry,
    device: Device,
}

impl EncoderBank {
    /// The encoders of `registry`, to be run on `device`.
    pub fn new(registry: Registry, device: Device) -> Self {
        Self { registry, device }
    }

    /// Why `config` cannot run for want of an encoder file: which, and how to get it.
    pub fn missing(&self, config: &Config) -> Option<String> {
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

    /// What makes these encoders what they are: names and checksums of their files for images of
    /// `resolution` pixels.
    pub fn identity(&self, names: &[String], resolution: u32) -> String {
        let parts: Vec<String> = names
            .iter()
            .filter(|name| !name.is_empty())
            .map(|name| {
                let identity = self.registry.identity(name, i64::from(resolution));
                format!("{name}:{}", identity.unwrap_or_else(|| "?".to_owned()))
            })
            .collect();
        parts.join(",")
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
        let options = LoadOptions {
            device: self.device,
            resolution: i64::from(resolution),
            precision,
        };
        self.registry.load(name, &options)
    }
}

/// What a trainer must know of an encoder.
pub fn shape(encoder: &dyn Encoder) -> EncoderShape {
    let spec = encoder.spec();
    EncoderShape {
        name: spec.name.clone(),
        width: spec.width as i64,
        grid: (spec.grid.height as i64, spec.grid.width as i64),
    }
}
