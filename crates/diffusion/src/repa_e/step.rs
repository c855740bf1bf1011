//! The three passes of REPA-E's training step.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, autocast};

use super::frozen::Frozen;
use super::latent_norm::LatentNorm;
use super::loss::{AutoencoderLoss, DiscriminatorLoss, GeneratorLoss};
use crate::autoencoder::{Autoencoder, KlAutoencoder, Posterior, kl};
use crate::nn::Statistics;
use crate::objective::velocity::Velocity;
use crate::{Denoiser, DiffusionError, Mode, check};

/// Coefficients of the alignment loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RepaEConfig {
    /// Coefficient in the autoencoder's loss (`vae_align_proj_coeff` upstream).
    pub autoencoder_alignment: f64,
    /// Coefficient in the denoiser's loss (`proj_coeff` upstream).
    pub denoiser_alignment: f64,
}

impl Default for RepaEConfig {
    fn default() -> Self {
        Self {
            autoencoder_alignment: 1.5,
            denoiser_alignment: 0.5,
        }
    }
}

/// The networks of REPA-E and the three passes of its training step (`train_repae.py` upstream).
///
/// It owns neither networks nor optimisers. For each batch, the caller runs, in this order:
/// [`RepaE::autoencoder_pass`], the backward pass, the autoencoder's optimiser; then
/// [`RepaE::discriminator_pass`] likewise; then [`RepaE::denoiser_pass`] likewise. The later passes use
/// the latents and the reconstructions of the first pass, from before the autoencoder's update. Each
/// pass records gradients only for the weights of its own network. See the [module](crate::repa_e) for
/// an example.
#[derive(Debug)]
pub struct RepaE<'a, D> {
    /// The autoencoder.
    pub autoencoder: &'a KlAutoencoder,
    /// The losses of the autoencoder, and the discriminator.
    pub loss: &'a AutoencoderLoss,
    /// The denoiser.
    pub denoiser: &'a D,
    /// The normalisation of the denoiser's input.
    pub latent_norm: &'a LatentNorm,
    /// The trained weights of the denoiser and of the heads that `align` uses. They record no gradient
    /// in the autoencoder's pass.
    pub denoiser_weights: &'a [Tensor],
    /// The denoiser's objective.
    pub objective: Velocity,
    /// Coefficients of the alignment loss.
    pub config: RepaEConfig,
    /// Autocast dtype of autoencoder and denoiser; `None` means float32 throughout. Posterior and
    /// losses are always computed outside autocast, in float32. `align` receives the hidden tokens in
    /// the dtype that the denoiser returns, and chooses its own precision.
    pub precision: Option<Kind>,
    /// The blocks of the denoiser, counted from 1, whose tokens `align` receives.
    pub hidden_depths: &'a [i64],
}

/// The random inputs of a training step, except label dropout.
#[derive(Debug)]
pub struct RandomInputs {
    /// Standard normal noise `[B, C, h, w]` for the sample from the posterior.
    pub posterior_noise: Tensor,
    /// Times `[B]`, for both the autoencoder's and the denoiser's pass.
    pub t: Tensor,
    /// Noise of the interpolant, `[B, C, h, w]`, for both passes.
    pub noise: Tensor,
}

/// Result of [`RepaE::autoencoder_pass`]. All tensors except the two totals are detached.
#[derive(Debug)]
pub struct AutoencoderPass {
    /// The autoencoder's loss, which records gradients.
    pub total: Tensor,
    /// The terms of the loss without alignment.
    pub generator: GeneratorLoss,
    /// The alignment loss, without its coefficient.
    pub alignment: Tensor,
    /// The images in [-1, 1], `[B, 3, H, W]`.
    pub pixels: Tensor,
    /// The reconstructions of the images, `[B, 3, H, W]`.
    pub reconstructions: Tensor,
    /// The latents of the images, not normalised, `[B, C, h, w]`.
    pub latents: Tensor,
    t: Tensor,
    noise: Tensor,
}

/// Result of [`RepaE::denoiser_pass`]. All tensors except the total are detached.
#[derive(Debug)]
pub struct DenoiserPass {
    /// The loss of the denoiser and the heads, which records gradients.
    pub total: Tensor,
    /// The objective's loss per sample, `[B]`.
    pub denoising: Tensor,
    /// The alignment loss, without its coefficient.
    pub alignment: Tensor,
}

impl<D: Denoiser> RepaE<'_, D> {
    /// Draws the random inputs of a step for `images` `[B, 3, H, W]`, bytes, in upstream's order:
    /// the posterior's noise, times, the interpolant's noise. Label dropout draws after them.
    ///
    /// # Errors
    /// `images` has another shape, or a size that the autoencoder cannot take.
    pub fn draw(
        &self,
        images: &Tensor,
        generator: &mut Generator,
    ) -> Result<RandomInputs, DiffusionError> {
        check::shape("the batch of images", images, &[-1, 3, -1, -1])?;
        let (batch, _, height, width) = images.size4()?;
        let [channels, rows, columns] = self.autoencoder.latent_shape(height, width)?;
        let shape = [batch, channels, rows, columns];
        let device = images.device();
        let posterior_noise = generator.randn(&shape, Kind::Float)?;
        let t = self
            .objective
            .time
            .draw(self.objective.path, batch, generator)?;
        let noise = generator.randn(&shape, Kind::Float)?;
        Ok(RandomInputs {
            posterior_noise: posterior_noise.f_to_device(device)?,
            t: t.f_to_device(device)?,
            noise: noise.f_to_device(device)?,
        })
    }

    /// The autoencoder's loss on `images` `[B, 3, H, W]`, bytes, with `labels` `[B]`, at step
    /// `step`, counted from 0.
    ///
    /// The gradient of the alignment loss reaches the autoencoder through the latents. They are
    /// normalised with the running statistics, noise is added, and the denoiser maps them to hidden
    /// tokens `[B, T, D]` per depth, from which `align` computes the alignment loss, a scalar. The denoiser runs
    /// in evaluation mode: no labels are dropped and no statistics are updated. Neither the denoiser's
    /// weights nor those of the heads record gradients. `align` is not called if the coefficient is 0.
    ///
    /// # Errors
    /// Shapes or dtypes do not match; the error that `align` returns.
    pub fn autoencoder_pass<E: From<DiffusionError>>(
        &self,
        images: &Tensor,
        labels: &Tensor,
        random_inputs: &RandomInputs,
        step: u64,
        align: impl FnOnce(&[Tensor]) -> Result<Tensor, E>,
    ) -> Result<AutoencoderPass, E> {
        let pixels = kl::pixels(images)?;
        let device = pixels.device();
        let moments = self.mixed(device, || self.autoencoder.moments(&pixels))?;
        let posterior = Posterior::new(&float(&moments)?)?;
        let latents = posterior.sample_with_noise(&random_inputs.posterior_noise)?;
        let reconstructions = self.mixed(device, || self.autoencoder.to_pixels(&latents))?;
        let generator = self
            .loss
            .generator(&pixels, &reconstructions, &posterior, step)?;
        let alignment = if self.config.autoencoder_alignment == 0.0 {
            generator
                .total
                .f_zeros_like()
                .map_err(DiffusionError::from)?
        } else {
            let _frozen = Frozen::new(self.denoiser_weights)?;
            let x0 = self.latent_norm.forward(&latents, Statistics::Running)?;
            let noisy = self
                .objective
                .add_noise(&x0, &random_inputs.t, &random_inputs.noise)?;
            let hidden = self.mixed(device, || {
                let (x, t) = (&noisy.x, &noisy.t);
                self.denoiser
                    .hidden(x, t, labels, self.hidden_depths, Mode::Eval)
            })?;
            align(&hidden)?
        };
        Ok(AutoencoderPass {
            total: add_scaled(
                &generator.total,
                &alignment,
                self.config.autoencoder_alignment,
            )?,
            generator,
            alignment: detached(&alignment)?,
            pixels,
            reconstructions: detached(&float(&reconstructions)?)?,
            latents: detached(&latents)?,
            t: random_inputs.t.shallow_clone(),
            noise: random_inputs.noise.shallow_clone(),
        })
    }

    /// The discriminator's loss on the images and reconstructions of the first pass.
    ///
    /// # Errors
    /// As [`AutoencoderLoss::discriminate`].
    pub fn discriminator_pass(
        &self,
        first: &AutoencoderPass,
        step: u64,
    ) -> Result<DiscriminatorLoss, DiffusionError> {
        self.loss
            .discriminate(&first.pixels, &first.reconstructions, step)
    }

    /// The loss of the denoiser and the heads on the latents of the first pass, with the same times
    /// and noise. The latents are normalised with the statistics of the batch, and the running
    /// statistics are updated. `mode` determines whether labels are dropped. `align` is as in the
    /// first pass.
    ///
    /// # Errors
    /// The denoiser rejects the labels; the error that `align` returns.
    pub fn denoiser_pass<E: From<DiffusionError>>(
        &self,
        first: &AutoencoderPass,
        labels: &Tensor,
        mode: Mode<'_>,
        align: impl FnOnce(&[Tensor]) -> Result<Tensor, E>,
    ) -> Result<DenoiserPass, E> {
        let x0 = self
            .latent_norm
            .forward(&first.latents, Statistics::Batch)?;
        let noisy = self.objective.add_noise(&x0, &first.t, &first.noise)?;
        let output = self.mixed(noisy.x.device(), || {
            let (x, t) = (&noisy.x, &noisy.t);
            self.denoiser
                .forward(x, t, labels, self.hidden_depths, mode)
        })?;
        let denoising = self.objective.loss(&output.prediction, &noisy)?;
        let alignment = align(&output.hidden)?;
        let mean = denoising.f_mean(None).map_err(DiffusionError::from)?;
        Ok(DenoiserPass {
            total: add_scaled(&mean, &alignment, self.config.denoiser_alignment)?,
            denoising: detached(&denoising)?,
            alignment: detached(&alignment)?,
        })
    }

    /// Runs a network under autocast to the configured precision.
    fn mixed<T>(
        &self,
        device: Device,
        network: impl FnOnce() -> Result<T, DiffusionError>,
    ) -> Result<T, DiffusionError> {
        autocast::run(device, self.precision, network)?
    }
}

fn float(tensor: &Tensor) -> Result<Tensor, DiffusionError> {
    Ok(tensor.f_to_kind(Kind::Float)?)
}

fn detached(tensor: &Tensor) -> Result<Tensor, DiffusionError> {
    Ok(tensor.f_detach()?)
}

/// `left + factor right`.
fn add_scaled(left: &Tensor, right: &Tensor, factor: f64) -> Result<Tensor, DiffusionError> {
    Ok(left.f_add(&right.f_mul_scalar(factor)?)?)
}
