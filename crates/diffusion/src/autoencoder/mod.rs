//! Autoencoders: maps between images as bytes and the space in which a denoiser works.

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
    /// The autoencoder cannot take images of this size.
    fn latent_shape(&self, height: i64, width: i64) -> Result<[i64; 3], DiffusionError>;

    /// Encodes images `[B, 3, H, W]`, bytes, as latents `[B, C, h, w]`, float32. An encoder with a
    /// posterior samples from it with numbers from `generator`.
    ///
    /// # Errors
    /// `images` has another shape or dtype.
    fn encode(&self, images: &Tensor, generator: &mut Generator) -> Result<Tensor, DiffusionError>;

    /// Decodes latents `[B, C, h, w]` of any floating-point dtype to images `[B, 3, H, W]`, bytes.
    /// Values between two bytes are rounded down, as upstream does.
    ///
    /// # Errors
    /// `latents` has another shape; decoded pixels are NaN or infinite.
    fn decode(&self, latents: &Tensor) -> Result<Tensor, DiffusionError>;
}

/// Maps pixels in [-1, 1] to bytes by truncation, and clamps values outside. NaN and infinite values
/// are an error.
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
