//! Losses of the autoencoder and its discriminator.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Reduction, Tensor};
use torch_ext::{Scope, optim};

use super::discriminator::{Discriminator, hinge_loss, lecam_loss};
use super::lpips::Lpips;
use crate::autoencoder::Posterior;
use crate::nn::{Statistics, shared_mean};
use crate::{DiffusionError, check};

/// The distance between a reconstruction and its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reconstruction {
    /// Mean absolute difference.
    #[default]
    L1,
    /// Mean squared difference.
    L2,
}

/// The weights of the autoencoder's losses; the defaults are upstream's `l1_lpips_kl_gan.yaml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoencoderLossConfig {
    /// The distance between reconstruction and image.
    pub reconstruction: Reconstruction,
    /// Weight of the reconstruction distance.
    pub reconstruction_weight: f64,
    /// The distance is divided by `exp(log_variance)` (`logvar_init` upstream, which is never trained).
    pub log_variance: f64,
    /// Weight of LPIPS. At 0, LPIPS is not computed and needs no weights file.
    pub perceptual_weight: f64,
    /// Weight of the posterior's KL divergence, which is summed over a latent.
    pub kl_weight: f64,
    /// Weight of the discriminator in the autoencoder's loss. It is constant, not adaptive.
    pub discriminator_weight: f64,
    /// Factor of the adversarial losses of the autoencoder and of the discriminator.
    pub discriminator_factor: f64,
    /// First step, counted from 0, that uses `discriminator_factor`. Before it, the factor is 0.
    pub discriminator_start: u64,
    /// Weight of LeCam regularisation in the discriminator's loss.
    pub lecam_weight: f64,
    /// Decay of LeCam's moving averages of logits.
    pub lecam_decay: f64,
}

impl Default for AutoencoderLossConfig {
    fn default() -> Self {
        Self {
            reconstruction: Reconstruction::L1,
            reconstruction_weight: 1.0,
            log_variance: 0.0,
            perceptual_weight: 1.0,
            kl_weight: 1e-6,
            discriminator_weight: 0.1,
            discriminator_factor: 1.0,
            discriminator_start: 0,
            lecam_weight: 0.0,
            lecam_decay: 0.999,
        }
    }
}

impl AutoencoderLossConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// The first setting with an invalid value, by name.
    pub fn validate(&self) -> Result<(), DiffusionError> {
        for (name, value) in [
            ("reconstruction_weight", self.reconstruction_weight),
            ("perceptual_weight", self.perceptual_weight),
            ("kl_weight", self.kl_weight),
            ("discriminator_weight", self.discriminator_weight),
            ("discriminator_factor", self.discriminator_factor),
            ("lecam_weight", self.lecam_weight),
        ] {
            let fits = value.is_finite() && value >= 0.0;
            check::setting(fits, name, value, "a number, at least 0")?;
        }
        let (decay, variance) = (self.lecam_decay, self.log_variance);
        let fits = (0.0..=1.0).contains(&decay);
        check::setting(fits, "lecam_decay", decay, "between 0 and 1")?;
        let fits = variance.is_finite();
        check::setting(fits, "log_variance", variance, "a number, usually 0")
    }

    /// The factor of the adversarial losses at step `step`, counted from 0.
    fn factor(&self, step: u64) -> f64 {
        if step >= self.discriminator_start {
            self.discriminator_factor
        } else {
            0.0
        }
    }
}

/// The losses of the autoencoder and of its discriminator (`ReconstructionLoss_Single_Stage` upstream,
/// with `quantize_mode` `vae`).
///
/// Both are computed in float32 for images of any dtype. Call them outside autocast.
#[derive(Debug)]
pub struct AutoencoderLoss {
    config: AutoencoderLossConfig,
    discriminator: Discriminator,
    lpips: Option<Lpips>,
    lecam: Option<Averages>,
}

/// Moving averages of the mean logits of images and reconstructions, `[1]` each.
#[derive(Debug)]
struct Averages {
    real: Tensor,
    fake: Tensor,
}

/// The autoencoder's loss and its terms, scalars on the device. All except the total are detached.
#[derive(Debug)]
pub struct GeneratorLoss {
    /// The sum, which records gradients.
    pub total: Tensor,
    /// Reconstruction loss, weighted and divided by the variance.
    pub reconstruction: Tensor,
    /// LPIPS, weighted.
    pub perceptual: Tensor,
    /// KL divergence averaged over samples, weighted.
    pub kl: Tensor,
    /// Negative mean logit of the reconstructions, not weighted.
    pub gan: Tensor,
    /// The GAN loss times its weight and factor.
    pub weighted_gan: Tensor,
    /// The factor of the adversarial loss at this step.
    pub discriminator_factor: f64,
}

/// The discriminator's loss and its terms, scalars on the device. All except the total are detached.
#[derive(Debug)]
pub struct DiscriminatorLoss {
    /// The sum, which records gradients.
    pub total: Tensor,
    /// Mean logit of the images.
    pub logits_real: Tensor,
    /// Mean logit of the reconstructions.
    pub logits_fake: Tensor,
    /// LeCam regularisation, weighted.
    pub lecam: Tensor,
}

impl AutoencoderLoss {
    /// Builds the losses. With LeCam, its moving averages are declared below `scope` as
    /// `ema_real_logits_mean` and `ema_fake_logits_mean`, initially zero.
    ///
    /// # Errors
    /// [`AutoencoderLossConfig::validate`] rejects the settings; `perceptual_weight` is not 0 without
    /// LPIPS; a name is already declared.
    pub fn new(
        scope: &Scope,
        config: AutoencoderLossConfig,
        discriminator: Discriminator,
        lpips: Option<Lpips>,
    ) -> Result<Self, DiffusionError> {
        config.validate()?;
        let weight = config.perceptual_weight;
        let fits = weight == 0.0 || lpips.is_some();
        check::setting(fits, "perceptual_weight", weight, "0 without LPIPS weights")?;
        let lecam = if config.lecam_weight > 0.0 {
            let zero = || Tensor::f_zeros([1], (Kind::Float, Device::Cpu));
            Some(Averages {
                real: scope.buffer("ema_real_logits_mean", zero()?)?,
                fake: scope.buffer("ema_fake_logits_mean", zero()?)?,
            })
        } else {
            None
        };
        Ok(Self {
            config,
            discriminator,
            lpips,
            lecam,
        })
    }

    /// The settings that the losses were built with.
    pub fn config(&self) -> &AutoencoderLossConfig {
        &self.config
    }

    /// The discriminator.
    pub fn discriminator(&self) -> &Discriminator {
        &self.discriminator
    }

    /// The autoencoder's loss at step `step`, counted from 0, for `images` and their
    /// `reconstructions`, both `[B, 3, H, W]` in [-1, 1]. The discriminator's weights record no
    /// gradient, but its batch norms use the statistics of the reconstructions and update their
    /// running statistics. The discriminator is not called if its weight or factor is 0.
    ///
    /// # Errors
    /// The shapes differ, or the images are too small for LPIPS or the discriminator.
    pub fn generator(
        &self,
        images: &Tensor,
        reconstructions: &Tensor,
        posterior: &Posterior,
        step: u64,
    ) -> Result<GeneratorLoss, DiffusionError> {
        let (images, reconstructions) = floats(images, reconstructions)?;
        let config = &self.config;
        let distance = match config.reconstruction {
            Reconstruction::L1 => reconstructions.f_l1_loss(&images, Reduction::Mean)?,
            Reconstruction::L2 => reconstructions.f_mse_loss(&images, Reduction::Mean)?,
        };
        let scale = config.reconstruction_weight / config.log_variance.exp();
        let reconstruction = distance.f_mul_scalar(scale)?;
        let zero = Tensor::f_zeros([0; 0], (Kind::Float, images.device()))?;
        let perceptual = match &self.lpips {
            Some(lpips) if config.perceptual_weight > 0.0 => lpips
                .forward(&images, &reconstructions)?
                .f_mean(None)?
                .f_mul_scalar(config.perceptual_weight)?,
            _ => zero.shallow_clone(),
        };
        let kl = posterior.kl()?.f_mean(None)?;
        let kl = kl.f_mul_scalar(config.kl_weight)?;
        let factor = config.factor(step);
        let weight = config.discriminator_weight * factor;
        let gan = if weight > 0.0 {
            let logits = self.discriminator.forward_frozen(&reconstructions)?;
            logits.f_mean(None)?.f_neg()?
        } else {
            zero
        };
        let weighted_gan = gan.f_mul_scalar(weight)?;
        Ok(GeneratorLoss {
            total: reconstruction
                .f_add(&perceptual)?
                .f_add(&kl)?
                .f_add(&weighted_gan)?,
            reconstruction: reconstruction.f_detach()?,
            perceptual: perceptual.f_detach()?,
            kl: kl.f_detach()?,
            gan: gan.f_detach()?,
            weighted_gan: weighted_gan.f_detach()?,
            discriminator_factor: factor,
        })
    }

    /// The discriminator's loss at step `step`, counted from 0, for `images` and their
    /// `reconstructions`, both detached. Its batch norms see the images first, then the
    /// reconstructions, even if the factor is 0 and all gradients are zero. LeCam uses the averages
    /// from before this call, and updates them afterwards.
    ///
    /// # Errors
    /// The shapes differ, or the images are too small for the discriminator.
    pub fn discriminate(
        &self,
        images: &Tensor,
        reconstructions: &Tensor,
        step: u64,
    ) -> Result<DiscriminatorLoss, DiffusionError> {
        let (images, reconstructions) = floats(images, reconstructions)?;
        let logits = |images: &Tensor| -> Result<Tensor, DiffusionError> {
            self.discriminator
                .forward(&images.f_detach()?, Statistics::Batch)
        };
        let (real, fake) = (logits(&images)?, logits(&reconstructions)?);
        let real_mean = shared_mean(real.f_mean(None)?)?;
        let fake_mean = shared_mean(fake.f_mean(None)?)?;
        let hinge = hinge_loss(&real, &fake)?;
        let total = hinge.f_mul_scalar(self.config.factor(step))?;
        let lecam = match &self.lecam {
            Some(averages) => {
                let loss = lecam_loss(&real_mean, &fake_mean, &averages.real, &averages.fake)?;
                averages.update(&real_mean, &fake_mean, self.config.lecam_decay)?;
                loss.f_mul_scalar(self.config.lecam_weight)?
            }
            None => Tensor::f_zeros([0; 0], (Kind::Float, images.device()))?,
        };
        Ok(DiscriminatorLoss {
            total: total.f_add(&lecam)?,
            logits_real: real_mean.f_detach()?,
            logits_fake: fake_mean.f_detach()?,
            lecam: lecam.f_detach()?,
        })
    }
}

impl Averages {
    fn update(&self, real: &Tensor, fake: &Tensor, decay: f64) -> Result<(), DiffusionError> {
        let averages = [&self.real, &self.fake].map(Tensor::shallow_clone);
        let means = [real.f_detach()?.f_view([1])?, fake.f_detach()?.f_view([1])?];
        Ok(optim::ema_(&averages, &means, decay)?)
    }
}

/// Checks that both have the same shape, and converts them to float32.
fn floats(images: &Tensor, reconstructions: &Tensor) -> Result<(Tensor, Tensor), DiffusionError> {
    check::shape("the batch of images", images, &[-1, 3, -1, -1])?;
    check::shape("the reconstructions", reconstructions, &images.size())?;
    Ok((
        images.f_to_kind(Kind::Float)?,
        reconstructions.f_to_kind(Kind::Float)?,
    ))
}
