//! Validates a configuration: ranges of settings, and settings that must fit each other.

mod autoencoder;
mod guidance;
mod ranges;
mod variant;

use super::invalid::InvalidConfig;
use super::root::Config;

impl Config {
    /// Checks the ranges of settings, and that settings fit each other.
    ///
    /// # Errors
    /// Names the first invalid key, its value, and the allowed values.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        self.check_ranges()?;
        let evaluate = &self.evaluate;
        let has_metric = !evaluate.fd_encoder.is_empty() || !evaluate.inception.is_empty();
        if evaluate.every > 0 && (!has_metric || self.sample.count == 0) {
            return Err(InvalidConfig::new(
                "evaluate.every",
                evaluate.every,
                "0 unless sample.count and evaluate.fd_encoder or evaluate.inception are set",
            ));
        }
        self.alignment.check()?;
        self.check_autoencoder()?;
        self.check_variant()?;
        self.check_resolution()?;
        if !self
            .train
            .batch_size
            .is_multiple_of(self.train.accumulation)
        {
            return Err(InvalidConfig::new(
                "train.accumulation",
                self.train.accumulation,
                format!("a divisor of train.batch_size, {}", self.train.batch_size),
            ));
        }
        self.check_graphs()?;
        self.check_guidance()?;
        if self.sample.count > 0 || self.sample.grid > 0 {
            self.objective
                .check_sampler(self.sample.sampler)
                .map_err(|error| InvalidConfig {
                    key: "sample.sampler",
                    reason: format!("is invalid: {error}"),
                })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Config)) -> Option<String> {
        let mut config = Config::default();
        change(&mut config);
        config.validate().err().map(|error| error.to_string())
    }

    #[test]
    fn settings_without_effect_or_out_of_range_are_refused() {
        for (error, words) in [
            (
                refused(|config| config.data.latent_cache = "latents".into()),
                ["`data.latent_cache`", "identity"],
            ),
            (
                refused(|config| config.model.alignment_depth = Some(13)),
                ["`model.alignment_depth`", "1 to 12"],
            ),
            (
                refused(|config| {
                    config.sample.sampler.num_steps = 0;
                    (config.sample.grid, config.sample.count) = (0, 0);
                }),
                ["`sample.sampler.num_steps`", "at least 1"],
            ),
        ] {
            let error = error.unwrap();
            for word in words {
                assert!(error.contains(word), "no {word} in {error}");
            }
        }
    }
}
