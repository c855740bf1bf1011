//! Configuration of the KL autoencoder, and its published layouts.

use serde::{Deserialize, Serialize};

use crate::{DiffusionError, check};

/// Configuration of a [`KlAutoencoder`](super::KlAutoencoder).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KlConfig {
    /// Channels of the latent (`embed_dim` upstream).
    pub latent_channels: i64,
    /// Channels at full resolution, before the multipliers (`ch` upstream).
    pub base_channels: i64,
    /// Channels of each level in units of `base_channels`, finest level first (`ch_mult`
    /// upstream). Every level but the last halves the image.
    pub channel_multipliers: Vec<i64>,
    /// Number of residual blocks per level of the encoder; a level of the decoder has one more.
    pub num_res_blocks: i64,
    /// Levels, counted from 0, in which attention follows every residual block. Upstream lists
    /// resolutions instead: a level has attention where `256 / 2^level` is 16.
    pub attention_levels: Vec<usize>,
    /// Number of groups of the group norms; divides the number of channels of every level.
    pub norm_groups: i64,
}

impl Default for KlConfig {
    /// Stable Diffusion's autoencoder, [`KlConfig::f8d4`].
    fn default() -> Self {
        Self::f8d4()
    }
}

impl KlConfig {
    /// Stable Diffusion's layout: 8 image pixels per latent pixel along each side, 4 channels (`f8d4`
    /// upstream).
    pub fn f8d4() -> Self {
        Self {
            latent_channels: 4,
            base_channels: 128,
            channel_multipliers: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            attention_levels: Vec::new(),
            norm_groups: 32,
        }
    }

    /// The layout of VA-VAE and of REPA-E's best models: 16 image pixels per latent pixel along each
    /// side, 32 channels, attention at the lowest resolution (`f16d32` upstream).
    pub fn f16d32() -> Self {
        Self {
            latent_channels: 32,
            base_channels: 128,
            channel_multipliers: vec![1, 1, 2, 2, 4],
            num_res_blocks: 2,
            attention_levels: vec![4],
            norm_groups: 32,
        }
    }

    /// Number of image pixels per latent pixel along one side.
    pub fn downsampling(&self) -> i64 {
        let halvings = self.channel_multipliers.len().saturating_sub(1);
        1_i64.checked_shl(halvings as u32).unwrap_or(i64::MAX)
    }

    /// `[C, h, w]` of the latents of images of `height` x `width` pixels.
    ///
    /// # Errors
    /// A side is not a positive multiple of [`KlConfig::downsampling`].
    pub fn latent_shape(&self, height: i64, width: i64) -> Result<[i64; 3], DiffusionError> {
        let factor = self.downsampling();
        let fits = |side: i64| side > 0 && side % factor == 0;
        if !fits(height) || !fits(width) {
            return Err(DiffusionError::ImageSize {
                height,
                width,
                multiple: factor,
            });
        }
        Ok([self.latent_channels, height / factor, width / factor])
    }

    /// Number of channels of level `level`; `base_channels` for a level past the end of the list.
    pub(super) fn channels(&self, level: usize) -> i64 {
        let multiplier = self.channel_multipliers.get(level).copied().unwrap_or(1);
        self.base_channels * multiplier
    }

    /// Number of levels.
    pub(super) fn levels(&self) -> usize {
        self.channel_multipliers.len()
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// The first setting with an invalid value, by name.
    pub fn validate(&self) -> Result<(), DiffusionError> {
        for (name, value) in [
            ("latent_channels", self.latent_channels),
            ("base_channels", self.base_channels),
            ("num_res_blocks", self.num_res_blocks),
            ("norm_groups", self.norm_groups),
        ] {
            check::setting(value > 0, name, value, "at least 1")?;
        }
        let found = format!("{:?}", self.channel_multipliers);
        let fits = (1..=16).contains(&self.levels())
            && self.channel_multipliers.iter().all(|&value| value > 0);
        let allowed = "one positive number for each of 1 to 16 levels";
        check::setting(fits, "channel_multipliers", found, allowed)?;
        // The finest level's input has `base_channels` channels whatever its multiplier.
        let groups = self.norm_groups;
        let mut channels = (0..=self.levels()).map(|level| self.channels(level));
        let fits = channels.all(|channels| channels % groups == 0);
        let allowed = "a divisor of base_channels and of every level's channels";
        check::setting(fits, "norm_groups", groups, allowed)?;
        let found = format!("{:?}", self.attention_levels);
        let last = self.levels() - 1;
        let fits = self.attention_levels.iter().all(|&level| level <= last);
        let allowed = format!("level numbers, 0 to {last}");
        check::setting(fits, "attention_levels", found, allowed)
    }
}
