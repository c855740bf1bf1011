//! Diffusion transformers, interpolants, objectives and samplers.
//!
//! The models to train and the samplers that draw images from them, on libtorch through [`tch`]:
//!
//! - a [`Denoiser`] maps noisy images, times and labels to a prediction and to the hidden tokens
//!   that representation alignment projects. [`Sit`] is the denoiser of REPA and iREPA;
//!   [`SitConfig::named`] knows its sizes. [`Jit`] works on large patches of pixels. [`models`] has one file per
//!   network, [`nn`] the layers that they are built from;
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
//! let output = sit.forward(&noisy.x, &noisy.t, &labels, &[2], Mode::Train(&mut generator))?;
//! objective.loss(&output.prediction, &noisy)?.mean(None).backward();
//! assert_eq!(output.hidden[0].size(), [2, 16, 128]); // after block 2
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
mod check;
mod denoiser;
mod error;
mod guidance;
pub mod interpolant;
pub mod latents;
pub mod models;
pub mod nn;
pub mod objective;
pub mod repa_e;
pub mod samplers;

pub use denoiser::{Denoiser, Dimensions, HiddenTokens, Mode, Output, drop_labels};
pub use error::DiffusionError;
pub use interpolant::Interpolant;
pub use models::jit::{Jit, JitConfig};
pub use models::sit::{Sit, SitConfig};

#[cfg(test)]
#[path = "../tests/golden/mod.rs"]
mod golden;
