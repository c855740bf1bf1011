//! The autoencoder for pixel-space diffusion: none.

use tch::{Kind, Tensor};
use torch_ext::Generator;

use super::{Autoencoder, bytes};
use crate::{DiffusionError, check};

/// An autoencoder that only rescales bytes: the denoiser works on pixels in [-1, 1].
///
/// ```
/// use diffusion::autoencoder::{Autoencoder, Identity};
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::Generator;
///
/// # fn main() -> Result<(), diffusion::DiffusionError> {
/// let images = Tensor::randint(256, [2, 3, 8, 8], (Kind::Uint8, Device::Cpu));
/// let pixels = Identity.encode(&images, &mut Generator::new(Device::Cpu, 0)?)?;
/// assert_eq!(Identity.decode(&pixels)?, images);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Identity;

/// Added to a byte before it is mapped to [-1, 1], in units of a byte. It exceeds the rounding error
/// of float32 on the way to the decoder (2e-5) and is too small to matter otherwise. Without it,
/// truncation in the decoder would return many bytes one too low.
const HEADROOM: f64 = 1.0 / 4096.0;

impl Autoencoder for Identity {
    fn latent_shape(&self, height: i64, width: i64) -> Result<[i64; 3], DiffusionError> {
        Ok([3, height, width])
    }

    fn encode(&self, images: &Tensor, _: &mut Generator) -> Result<Tensor, DiffusionError> {
        check::shape("the batch of images", images, &[-1, 3, -1, -1])?;
        check::dtype("the batch of images", images, Kind::Uint8)?;
        Ok(images
            .f_to_kind(Kind::Float)?
            .f_mul_scalar_(1.0 / 127.5)?
            .f_add_scalar_(HEADROOM / 127.5 - 1.0)?
            .f_clamp_max_(1.0)?)
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor, DiffusionError> {
        check::shape("the batch of pixels", latents, &[-1, 3, -1, -1])?;
        bytes(latents)
    }
}
