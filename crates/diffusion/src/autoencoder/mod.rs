//! Between images as bytes and the space in which a denoiser works.

mod identity;
pub(crate) mod kl;

use std::fmt::Debug;

use tch::{Kind, Tensor};
use torch_ext::Generator;

use crate::DiffusionError;

pub use identity::Identity;
pub use kl::{KlAutoencoder, KlConfig, Posterior};

/// Maps images to latents and back.
pub trait Autoencoder: Debug + Send {
    /// `[C, h, w]` of the latents of images of `height` x `width` pixels.
    ///
    /// # Errors
    /// A size it cannot take.
    fn latent_shape(&self, height: i64, width: i64) -> Result<[i64; 3], DiffusionError>;

    /// Latents `[B, C, h, w]`, float32, of images `[B, 3, H, W]`, bytes. An encoder with a
    /// posterior samples it from `generator`.
    ///
    /// # Errors
    /// Another shape or dtype.
    fn encode(&self, images: &Tensor, generator: &mut Generator) -> Result<Tensor, DiffusionError>;

    /// Images `[B, 3, H, W]`, bytes, of latents `[B, C, h, w]` of any floating-point dtype.
    /// Levels between two bytes become the lower one, as upstream writes images.
    ///
    /// # Errors
    /// Another shape; values that are NaN or infinite.
    fn decode(&self, latents: &Tensor) -> Result<Tensor, DiffusionError>;
}

/// Pixels in [-1, 1] to bytes, truncated; what lies outside is clamped. NaN has no byte.
fn bytes(pixels: &Tensor) -> Result<Tensor, DiffusionError> {
    if pixels.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
        return Err(DiffusionError::NotFinite {
            what: "a batch of decoded pixels",
        });
    }
    Ok(pixels
        .f_to_kind(Kind::Float)?
        .f_add_scalar(1.0)?
        .f_mul_scalar_(127.5)?
        .f_clamp_(0.0, 255.0)?
        .f_to_kind(Kind::Uint8)?)
}
