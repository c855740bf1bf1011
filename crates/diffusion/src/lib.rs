//! Diffusion transformers, interpolants, objectives and samplers.
//!
//! The models to train and the samplers that draw images from them, on libtorch through [`tch`]:
//!
//! - a [`Denoiser`] maps noisy images, times and labels to a prediction and to the hidden tokens
//!   that representation alignment projects. [`Sit`] is the denoiser of REPA and iREPA;
//!   [`SitConfig::named`] knows its sizes. [`Jit`] works on large patches of pixels;
//! - an [`Interpolant`] mixes an image with noise; an [`objective`] defines what a denoiser predicts
//!   from the mixture;
//! - a [`samplers::Sampler`] integrates from noise back to an image, with classifier-free guidance;
//! - an [`autoencoder::Autoencoder`] maps between bytes and the space in which the denoiser works;
//!   [`latents`] samples latents from stored moments;
//! - [`repa_e`] trains the autoencoder and the denoiser together.
//!
//! Time runs from 0 (image) to 1 (noise), except in JiT, where it runs the other way. Every random
//! number comes from a [`torch_ext::Generator`] that the caller passes.
//!
//! # Example
//!
//! ```
//! use diffusion::autoencoder::{Autoencoder, Identity};
//! use diffusion::objective::velocity::Velocity;
//! use diffusion::samplers::{Method, Sampler, SamplerConfig};
//! use diffusion::{Denoiser, Mode, Sit, SitConfig};
//! use tch::{Device, Kind, Tensor};
//! use torch_ext::{Generator, Params};
//!
//! # fn main() -> Result<(), diffusion::DiffusionError> {
//! let mut generator = Generator::new(Device::Cpu, 0)?;
//! let images = Tensor::randint(256, [2, 3, 16, 16], (Kind::Uint8, Device::Cpu));
//! let labels = Tensor::from_slice(&[0i64, 1]);
//!
//! // A small SiT on pixels.
//! let config = SitConfig {
//!     input_size: 16,
//!     in_channels: 3,
//!     num_classes: 2,
//!     ..SitConfig::named("SiT-XS/4")?
//! };
//! let params = Params::new(Device::Cpu, 0)?;
//! let sit = Sit::new(&params.root(), &config)?;
//!
//! // Loss and gradients of one training step.
//! let objective = Velocity::default();
//! let x0 = Identity.encode(&images, &mut generator)?;
//! let noisy = objective.draw(&x0, &mut generator)?;
//! let output = sit.forward(&noisy.x, &noisy.t, &labels, Mode::Train(&mut generator))?;
//! objective.loss(&output.prediction, &noisy)?.mean(None).backward();
//! assert_eq!(output.hidden.size(), [2, 16, 128]);
//!
//! // Two images, sampled with guidance.
//! let latents = generator.randn(&[2, 3, 16, 16], Kind::Float)?;
//! let config = SamplerConfig {
//!     method: Method::Euler,
//!     num_steps: 4,
//!     cfg_scale: 2.0,
//!     ..SamplerConfig::default()
//! };
//! let sampler = Sampler::new(config, objective.path)?;
//! let samples = sampler.sample(&sit, &latents, &labels, &mut generator, |_| {})?;
//! assert_eq!(Identity.decode(&samples)?.kind(), Kind::Uint8);
//! # Ok(())
//! # }
//! ```

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod autoencoder;
mod batch_norm;
mod check;
mod conv;
mod denoiser;
mod dual;
mod embedding;
mod error;
pub mod interpolant;
pub mod jit;
pub mod latents;
mod layers;
pub mod meanflow;
pub mod objective;
pub mod repa_e;
pub mod samplers;
mod sit;

pub use denoiser::{Denoiser, Mode, Output, drop_labels};
pub use embedding::{sincos_2d, timestep_sinusoids};
pub use error::DiffusionError;
pub use interpolant::Interpolant;
pub use jit::{Jit, JitConfig};
pub use sit::{Sit, SitConfig};

#[cfg(test)]
#[path = "../tests/golden/mod.rs"]
mod golden;
