//! The encoders of a sweep: what is there, and loading it.

use encoders::{Encoder, EncoderError, LoadOptions, Registry, Status};
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
        let judge = Some(config.evaluate.fd_encoder.clone()).filter(|name| !name.is_empty());
        let names = config.alignment.encoders().into_iter().chain(judge);
        names
            .filter_map(|name| match self.registry.status(&name) {
                Ok(Status::Missing { hint }) => {
                    Some(format!("{name} is not on this machine; {hint}"))
                }
                _ => None,
            })
            .next()
    }

    /// What makes these encoders what they are: names and checksums of their files.
    pub fn identity(&self, names: &[String]) -> String {
        let parts: Vec<String> = names
            .iter()
            .filter(|name| !name.is_empty())
            .map(|name| {
                let identity = self.registry.identity(name);
                format!("{name}:{}", identity.unwrap_or_else(|| "?".to_owned()))
            })
            .collect();
        parts.join(",")
    }

    /// Loads one encoder for images of `resolution` pixels.
    ///
    /// # Errors
    /// It is not there, or its file is not what its sidecar says.
    pub fn load(&self, name: &str, resolution: u32) -> Result<Box<dyn Encoder>, EncoderError> {
        let options = LoadOptions {
            device: self.device,
            resolution: i64::from(resolution),
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
