//! The KL autoencoder of latent diffusion (arXiv 2112.10752), as Stable Diffusion, VA-VAE and
//! REPA-E (arXiv 2504.10483) use it.
//!
//! Weights have the names and shapes of upstream's state dict (`models/autoencoder.py` of
//! REPA-E).

mod blocks;
mod config;
mod decoder;
mod encoder;
mod posterior;
#[cfg(test)]
mod tests;

use tch::{Kind, Tensor};
use torch_ext::{Generator, Scope};

use self::decoder::Decoder;
use self::encoder::Encoder;
use super::{Autoencoder, bytes};
use crate::nn::Conv2d;
use crate::{DiffusionError, check};

pub use config::KlConfig;
pub use posterior::Posterior;

/// The KL autoencoder: maps pixels in [-1, 1] to a [`Posterior`] over latents, and latents to pixels.
///
/// Its own methods record gradients; those of the trait [`Autoencoder`] do not. Latents are not
/// scaled: [`LatentScaling`](crate::latents::LatentScaling) or a
/// [`LatentNorm`](crate::repa_e::LatentNorm) maps them to the denoiser's scale.
///
/// ```
/// use diffusion::autoencoder::{Autoencoder, KlAutoencoder, KlConfig};
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::{Generator, Params};
///
/// # fn main() -> Result<(), diffusion::DiffusionError> {
/// let config = KlConfig { base_channels: 8, norm_groups: 4, ..KlConfig::f8d4() };
/// let params = Params::new(Device::Cpu, 0)?;
/// let autoencoder = KlAutoencoder::new(&params.root(), &config)?;
///
/// let pixels = Tensor::rand([2, 3, 16, 16], (Kind::Float, Device::Cpu)) * 2 - 1;
/// let posterior = autoencoder.posterior(&pixels)?;
/// let latents = posterior.sample(&mut Generator::new(Device::Cpu, 0)?)?;
/// assert_eq!(latents.size(), [2, 4, 2, 2]);
/// let reconstruction = autoencoder.to_pixels(&latents)?;
/// assert_eq!(reconstruction.size(), [2, 3, 16, 16]);
/// assert_eq!(autoencoder.decode(&latents)?.kind(), Kind::Uint8);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct KlAutoencoder {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Conv2d,
    post_quant_conv: Conv2d,
    config: KlConfig,
}

impl KlAutoencoder {
    /// Declares the weights below `scope` and initialises them with PyTorch's defaults.
    ///
    /// # Errors
    /// [`KlConfig::validate`] rejects the settings, or a weight name is already declared.
    pub fn new(scope: &Scope, config: &KlConfig) -> Result<Self, DiffusionError> {
        config.validate()?;
        let channels = config.latent_channels;
        let conv = |name: &str, channels| Conv2d::same(&scope.sub(name), channels, channels, 1);
        Ok(Self {
            encoder: Encoder::new(&scope.sub("encoder"), config)?,
            decoder: Decoder::new(&scope.sub("decoder"), config)?,
            quant_conv: conv("quant_conv", 2 * channels)?,
            post_quant_conv: conv("post_quant_conv", channels)?,
            config: config.clone(),
        })
    }

    /// The settings that the autoencoder was built with.
    pub fn config(&self) -> &KlConfig {
        &self.config
    }

    /// Moments `[B, 2 C, H / f, W / f]` of images `[B, 3, H, W]` in [-1, 1].
    ///
    /// # Errors
    /// `pixels` has another shape, or a side is not a multiple of `f`, which is
    /// [`KlConfig::downsampling`].
    pub fn moments(&self, pixels: &Tensor) -> Result<Tensor, DiffusionError> {
        check::shape("the batch of images", pixels, &[-1, 3, -1, -1])?;
        let (_, _, height, width) = pixels.size4()?;
        self.latent_shape(height, width)?;
        self.quant_conv.forward(&self.encoder.forward(pixels)?)
    }

    /// The posterior over latents of images `[B, 3, H, W]` in [-1, 1].
    ///
    /// # Errors
    /// As [`KlAutoencoder::moments`].
    pub fn posterior(&self, pixels: &Tensor) -> Result<Posterior, DiffusionError> {
        Posterior::new(&self.moments(pixels)?)
    }

    /// The posterior over latents of images `[B, 3, H, W]`, bytes.
    ///
    /// # Errors
    /// As [`KlAutoencoder::moments`].
    pub fn posterior_of_bytes(&self, images: &Tensor) -> Result<Posterior, DiffusionError> {
        self.posterior(&pixels(images)?)
    }

    /// Decodes latents `[B, C, h, w]` to images `[B, 3, f h, f w]`. Pixels are nominally in [-1, 1] but
    /// not clamped.
    ///
    /// # Errors
    /// `latents` has another shape.
    pub fn to_pixels(&self, latents: &Tensor) -> Result<Tensor, DiffusionError> {
        let channels = self.config.latent_channels;
        check::shape("the batch of latents", latents, &[-1, channels, -1, -1])?;
        self.decoder
            .forward(&self.post_quant_conv.forward(latents)?)
    }
}

/// Maps images `[B, 3, H, W]`, bytes, to pixels in [-1, 1], float32.
pub(crate) fn pixels(images: &Tensor) -> Result<Tensor, DiffusionError> {
    check::shape("the batch of images", images, &[-1, 3, -1, -1])?;
    check::dtype("the batch of images", images, Kind::Uint8)?;
    Ok(images
        .f_to_kind(Kind::Float)?
        .f_div_scalar_(127.5)?
        .f_sub_scalar_(1.0)?)
}

impl Autoencoder for KlAutoencoder {
    fn latent_shape(&self, height: i64, width: i64) -> Result<[i64; 3], DiffusionError> {
        self.config.latent_shape(height, width)
    }

    fn encode(&self, images: &Tensor, generator: &mut Generator) -> Result<Tensor, DiffusionError> {
        tch::no_grad(|| self.posterior_of_bytes(images)?.sample(generator))
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor, DiffusionError> {
        let latents = latents.f_to_kind(Kind::Float)?;
        tch::no_grad(|| bytes(&self.to_pixels(&latents)?))
    }
}
