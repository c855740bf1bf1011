//! `[objective]` with `kind = "repa-e"`.

use std::path::Path;

use diffusion::DiffusionError;
use diffusion::interpolant::{Interpolant, TimeSampling};
use diffusion::objective::velocity::Velocity;
use diffusion::repa_e::{AutoencoderLossConfig, Discriminator, LatentNorm, Lpips, RepaEConfig};
use serde::{Deserialize, Serialize};

use super::path::ConfigPath;

/// `[objective]` with `kind = "repa-e"`: joint training of denoiser and autoencoder, the denoiser with
/// SiT's objective (arXiv 2504.10483; `train_repae.py` upstream). The defaults are upstream's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JointTraining {
    /// The path from latents to noise.
    pub path: Interpolant,
    /// The distribution of times.
    pub time: TimeSampling,
    /// Weight of the alignment loss in the autoencoder's loss. It is averaged over `alignment.losses`
    /// without their coefficients.
    pub autoencoder_alignment: f64,
    /// Learning rate of the autoencoder; default `optimizer.lr`. Warm-up and schedule are those of the
    /// denoiser.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoencoder_lr: Option<f64>,
    /// Learning rate of the discriminator; default `optimizer.lr`. Warm-up and schedule are those of
    /// the denoiser.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discriminator_lr: Option<f64>,
    /// The autoencoder's losses.
    pub loss: AutoencoderLossConfig,
    /// Safetensors file with the weights of LPIPS; not needed if `loss.perceptual_weight` is 0.
    pub lpips: ConfigPath,
    /// Safetensors file with the discriminator's initial weights; if empty, they are drawn at random.
    #[serde(skip_serializing_if = "ConfigPath::is_empty")]
    pub discriminator_weights: ConfigPath,
    /// Number of channels of the discriminator's first layer.
    pub discriminator_channels: i64,
    /// Number of the discriminator's layers that halve the resolution.
    pub discriminator_layers: i64,
    /// Weight of a batch in the running statistics that normalise latents.
    pub latent_norm_momentum: f64,
}

impl Default for JointTraining {
    fn default() -> Self {
        Self {
            path: Interpolant::default(),
            time: TimeSampling::default(),
            autoencoder_alignment: RepaEConfig::default().autoencoder_alignment,
            autoencoder_lr: None,
            discriminator_lr: None,
            loss: AutoencoderLossConfig::default(),
            lpips: ConfigPath::default(),
            discriminator_weights: ConfigPath::default(),
            discriminator_channels: Discriminator::CHANNELS,
            discriminator_layers: Discriminator::LAYERS,
            latent_norm_momentum: LatentNorm::MOMENTUM,
        }
    }
}

impl JointTraining {
    /// Returns the files that the objective reads, with the key of each.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let lpips = match self.loss.perceptual_weight > 0.0 {
            true => &*self.lpips,
            false => Path::new(""),
        };
        let files = [
            ("objective.lpips", lpips),
            (
                "objective.discriminator_weights",
                &*self.discriminator_weights,
            ),
        ];
        files
            .into_iter()
            .filter(|(_, path)| !path.as_os_str().is_empty())
    }

    /// Returns the denoiser's objective.
    pub fn velocity(&self) -> Velocity {
        Velocity {
            path: self.path,
            time: self.time,
        }
    }

    /// Checks the objective's settings.
    ///
    /// # Errors
    /// Names the first setting with an invalid value.
    pub fn validate(&self) -> Result<(), DiffusionError> {
        let setting = |name, found: String, allowed: &str| {
            Err(DiffusionError::Setting {
                name,
                found,
                allowed: allowed.to_owned(),
            })
        };
        for (name, value) in [
            ("autoencoder_alignment", Some(self.autoencoder_alignment)),
            ("autoencoder_lr", self.autoencoder_lr),
            ("discriminator_lr", self.discriminator_lr),
        ] {
            if value.is_some_and(|value| !value.is_finite() || value < 0.0) {
                let found = value.unwrap_or_default().to_string();
                return setting(name, found, "a finite number, not negative");
            }
        }
        if self.discriminator_channels < 1 {
            let found = self.discriminator_channels.to_string();
            return setting("discriminator_channels", found, "at least 1");
        }
        if !(1..=8).contains(&self.discriminator_layers) {
            let found = self.discriminator_layers.to_string();
            return setting("discriminator_layers", found, "1 to 8");
        }
        if !(self.latent_norm_momentum > 0.0 && self.latent_norm_momentum <= 1.0) {
            let found = self.latent_norm_momentum.to_string();
            return setting("latent_norm_momentum", found, "above 0, and at most 1");
        }
        if self.loss.perceptual_weight > 0.0 && self.lpips.is_empty() {
            let allowed = "the file that crates/diffusion/python/convert_lpips.py writes, unless \
                           loss.perceptual_weight is 0";
            return setting("lpips", "empty".to_owned(), allowed);
        }
        self.loss.validate()
    }

    /// Returns the smallest image side that the losses support.
    pub(crate) fn smallest_side(&self) -> u32 {
        let discriminator = 3_u32 << self.discriminator_layers.clamp(1, 8);
        match self.loss.perceptual_weight > 0.0 {
            true => discriminator.max(Lpips::SMALLEST_SIDE),
            false => discriminator,
        }
    }
}
