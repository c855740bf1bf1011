//! REPA-E: autoencoder and denoiser trained together (arXiv 2504.10483).

mod discriminator;
mod frozen;
mod latent_norm;
mod loss;
mod lpips;

pub use crate::batch_norm::Statistics;
pub use discriminator::{Discriminator, hinge_loss, lecam_loss};
pub use latent_norm::LatentNorm;
pub use loss::{
    AutoencoderLoss, AutoencoderLossConfig, DiscriminatorLoss, GeneratorLoss, Reconstruction,
};
pub use lpips::Lpips;
