//! REPA-E: joint training of autoencoder and denoiser (arXiv 2504.10483).
//!
//! The alignment loss trains the autoencoder, but the denoiser's loss does not: it would teach the
//! autoencoder to make latents easy to denoise. A step has three passes, each with its own optimiser:
//!
//! 1. the autoencoder learns from its reconstruction ([`AutoencoderLoss`]: L1, [`Lpips`], KL, and
//!    a [`Discriminator`]) and from the alignment of the denoiser's hidden tokens;
//! 2. the discriminator learns to distinguish images from reconstructions;
//! 3. the denoiser and its projection heads learn from the objective and from alignment, on latents
//!    that are detached from the autoencoder.
//!
//! [`RepaE`] borrows the networks and computes the losses of the passes; the caller runs the
//! optimisers between them. A [`LatentNorm`] keeps latents at unit scale while the autoencoder changes.
//!
//! ```
//! use diffusion::autoencoder::{KlAutoencoder, KlConfig};
//! use diffusion::objective::velocity::Velocity;
//! use diffusion::repa_e::{
//!     AutoencoderLoss, AutoencoderLossConfig, Discriminator, LatentNorm, RepaE, RepaEConfig,
//! };
//! use diffusion::{Denoiser, DiffusionError, Mode, Sit, SitConfig};
//! use tch::{Device, Kind, Tensor};
//! use torch_ext::{Generator, Params};
//!
//! # fn main() -> Result<(), DiffusionError> {
//! // Three sets of weights for three optimisers.
//! let [of_autoencoder, of_discriminator, of_denoiser] =
//!     [0, 1, 2].map(|seed| Params::new(Device::Cpu, seed));
//! let (of_autoencoder, of_discriminator, of_denoiser) =
//!     (of_autoencoder?, of_discriminator?, of_denoiser?);
//!
//! let config = KlConfig { base_channels: 8, norm_groups: 4, ..KlConfig::f8d4() };
//! let autoencoder = KlAutoencoder::new(&of_autoencoder.root(), &config)?;
//! let config = AutoencoderLossConfig { perceptual_weight: 0.0, ..Default::default() };
//! let discriminator = Discriminator::new(&of_discriminator.root(), 8, 3)?;
//! let loss = AutoencoderLoss::new(&of_discriminator.root(), config, discriminator, None)?;
//! let config = SitConfig { input_size: 4, num_classes: 2, ..SitConfig::named("SiT-XS/2")? };
//! let denoiser = Sit::new(&of_denoiser.root(), &config)?;
//! let latent_norm = LatentNorm::new(&of_denoiser.root(), 4, LatentNorm::MOMENTUM)?;
//! let repa_e = RepaE {
//!     autoencoder: &autoencoder,
//!     loss: &loss,
//!     denoiser: &denoiser,
//!     latent_norm: &latent_norm,
//!     denoiser_weights: &of_denoiser.trainable(),
//!     objective: Velocity::default(),
//!     config: RepaEConfig::default(),
//!     precision: None,
//!     hidden_depths: &[2],
//! };
//!
//! let mut generator = Generator::new(Device::Cpu, 0)?;
//! let images = Tensor::randint(256, [2, 3, 32, 32], (Kind::Uint8, Device::Cpu));
//! let labels = Tensor::from_slice(&[0i64, 1]);
//! // A loss on the hidden tokens: here their mean square; in real use, heads and encoder tokens.
//! let align = |hidden: &[Tensor]| -> Result<Tensor, DiffusionError> {
//!     Ok(hidden[0].f_square()?.f_mean(None)?)
//! };
//!
//! let random_inputs = repa_e.draw(&images, &mut generator)?;
//! let first = repa_e.autoencoder_pass(&images, &labels, &random_inputs, 0, align)?;
//! first.total.backward(); // then: clip, step and clear the autoencoder's gradients
//! let second = repa_e.discriminator_pass(&first, 0)?;
//! second.total.backward(); // then the discriminator's
//! let third = repa_e.denoiser_pass(&first, &labels, Mode::Train(&mut generator), align)?;
//! third.total.backward(); // then the denoiser's
//!
//! // Latents that the denoiser samples are mapped to the autoencoder's scale before decoding.
//! let z = generator.randn(&[2, 4, 4, 4], Kind::Float)?;
//! let pixels = autoencoder.to_pixels(&latent_norm.scaling()?.to_decoder(&z)?)?;
//! assert_eq!(pixels.size(), [2, 3, 32, 32]);
//! # Ok(())
//! # }
//! ```

mod discriminator;
mod frozen;
mod latent_norm;
mod loss;
mod lpips;
mod step;

pub use crate::nn::Statistics;
pub use discriminator::{Discriminator, hinge_loss, lecam_loss};
pub use latent_norm::LatentNorm;
pub use loss::{
    AutoencoderLoss, AutoencoderLossConfig, DiscriminatorLoss, GeneratorLoss, Reconstruction,
};
pub use lpips::Lpips;
pub use step::{AutoencoderPass, DenoiserPass, RandomInputs, RepaE, RepaEConfig};
