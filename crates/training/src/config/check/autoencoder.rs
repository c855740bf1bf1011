//! The checks of the autoencoder, and of the resolution that it and the patches need.

use diffusion::{JitConfig, SitConfig};

use crate::config::autoencoder::Autoencoder;
use crate::config::invalid::InvalidConfig;
use crate::config::root::Config;

impl Config {
    /// Checks the autoencoder's settings, and that `data.latent_cache` fits them.
    pub(super) fn check_autoencoder(&self) -> Result<(), InvalidConfig> {
        let invalid = |key, reason: String| InvalidConfig { key, reason };
        let Autoencoder::Kl(settings) = &self.model.autoencoder else {
            if !self.data.latent_cache.is_empty() {
                return Err(invalid(
                    "data.latent_cache",
                    "names a folder, but model.autoencoder is identity: without latents the cache \
                     has no effect"
                        .to_owned(),
                ));
            }
            return Ok(());
        };
        if settings.weights.is_empty() && !settings.train {
            return Err(invalid(
                "model.autoencoder.weights",
                "names no file, but an autoencoder that is not trained needs its weights"
                    .to_owned(),
            ));
        }
        if settings.train && !self.data.latent_cache.is_empty() {
            return Err(invalid(
                "data.latent_cache",
                "names a folder, but the autoencoder is trained: its latents change with it"
                    .to_owned(),
            ));
        }
        let layout = settings.layout.config();
        let refused = |error| {
            let reason = format!("is invalid: {error}");
            invalid("model.autoencoder.layout", reason)
        };
        layout.validate().map_err(refused)?;
        let channels = layout.latent_channels;
        for (key, values) in [
            ("model.autoencoder.scale", settings.scale.values()),
            ("model.autoencoder.bias", settings.bias.values()),
        ] {
            let fits = [1, channels].contains(&(values.len() as i64))
                && values.iter().all(|value| value.is_finite());
            if !fits {
                let allowed = format!("a finite number, or {channels} of them, one per channel");
                return Err(InvalidConfig::new(key, format!("{values:?}"), allowed));
            }
        }
        if settings.scale.values().contains(&0.0) {
            return Err(InvalidConfig::new(
                "model.autoencoder.scale",
                0,
                "anything but 0",
            ));
        }
        Ok(())
    }

    /// Checks that the resolution is a multiple of the patch side, times the autoencoder's downsampling.
    pub(super) fn check_resolution(&self) -> Result<(), InvalidConfig> {
        let name = &self.model.name;
        let patch = match self.model.is_jit() {
            true => JitConfig::named(name).map(|config| config.patch_size),
            false => SitConfig::named(name).map(|config| config.patch_size),
        };
        let patch = patch.map_err(|error| InvalidConfig {
            key: "model.name",
            reason: error.to_string(),
        })?;
        let side = i64::from(self.data.resolution);
        let (multiple, explanation) = match &self.model.autoencoder {
            Autoencoder::Identity => (patch, format!("the patch side of model.name, {name}")),
            Autoencoder::Kl(settings) => {
                let factor = settings.layout.config().downsampling();
                let explanation = format!(
                    "the patch side of model.name, {name}, times {factor} of model.autoencoder"
                );
                (patch.saturating_mul(factor), explanation)
            }
        };
        if side % multiple != 0 {
            let allowed = format!("a multiple of {multiple}: {explanation}");
            return Err(InvalidConfig::new("data.resolution", side, allowed));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KlSettings;

    fn refused(change: impl FnOnce(&mut Config)) -> Option<String> {
        let mut config = Config::default();
        change(&mut config);
        config.validate().err().map(|error| error.to_string())
    }

    #[test]
    fn a_resolution_that_does_not_fit_the_patches_is_refused_with_the_multiple() {
        let error_of = |model: &str, resolution, autoencoder| {
            refused(|config| {
                config.model.name = model.to_owned();
                config.model.autoencoder = autoencoder;
                config.data.resolution = resolution;
            })
        };
        let kl = || {
            Autoencoder::Kl(KlSettings {
                weights: "vae.safetensors".into(),
                ..KlSettings::default()
            })
        };
        assert_eq!(error_of("SiT-XS/4", 36, Autoencoder::Identity), None);
        assert_eq!(error_of("SiT-B/2", 48, kl()), None);
        for (error, words) in [
            (
                error_of("SiT-XS/4", 33, Autoencoder::Identity),
                ["33", "multiple of 4", "SiT-XS/4"],
            ),
            // A multiple of the autoencoder's 8, but a patch has 2 x 2 latent pixels.
            (
                error_of("SiT-B/2", 40, kl()),
                ["40", "multiple of 16", "times 8"],
            ),
            (
                error_of("SiT-B/2", 41, kl()),
                ["41", "multiple of 16", "times 8"],
            ),
        ] {
            let error = error.unwrap();
            assert!(error.starts_with("`data.resolution`"), "{error}");
            for word in words {
                assert!(error.contains(word), "no {word} in {error}");
            }
        }
    }
}
