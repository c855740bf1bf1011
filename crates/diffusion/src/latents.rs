//! Sampling of latents from stored moments, and the scaling between autoencoder and denoiser.

use tch::{Device, Tensor};

use crate::{DiffusionError, check};

/// The affine map between an autoencoder's latents and the denoiser's:
/// `z = (latent - bias) * scale`.
#[derive(Debug)]
pub struct LatentScaling {
    scale: Tensor,
    bias: Tensor,
}

impl LatentScaling {
    /// A map with one entry for all channels, or one entry per channel. Its tensors are on `device`.
    ///
    /// # Errors
    /// `scale` or `bias` is empty or not finite; their lengths differ and neither is 1; a scale is 0.
    pub fn new(scale: &[f64], bias: &[f64], device: Device) -> Result<Self, DiffusionError> {
        for (name, values) in [("latent scale", scale), ("latent bias", bias)] {
            let fits = !values.is_empty() && values.iter().all(|value| value.is_finite());
            let found = format!("{values:?}");
            check::setting(
                fits,
                name,
                found,
                "one finite number, or one for each channel",
            )?;
        }
        let fits = !scale.contains(&0.0);
        check::setting(fits, "latent scale", format!("{scale:?}"), "free of zeros")?;
        let fits = scale.len() == bias.len() || scale.len() == 1 || bias.len() == 1;
        let allowed = format!("one number, or {} like the scale", scale.len());
        check::setting(fits, "latent bias", format!("{bias:?}"), allowed)?;
        let channels = |values: &[f64]| -> Result<Tensor, DiffusionError> {
            let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
            let tensor = Tensor::f_from_slice(&values)?.f_view([1, -1, 1, 1])?;
            Ok(tensor.f_to_device(device)?)
        };
        Ok(Self {
            scale: channels(scale)?,
            bias: channels(bias)?,
        })
    }

    /// A latent for the denoiser, `[B, C, h, w]`, from stored `moments` `[B, 2C, h, w]` and
    /// standard normal `noise` `[B, C, h, w]` (`sample_posterior` upstream). The first half of the
    /// channels of `moments` is the mean; the second half is the standard deviation, not its
    /// logarithm.
    ///
    /// # Errors
    /// The shapes do not match.
    pub fn sample_posterior(
        &self,
        moments: &Tensor,
        noise: &Tensor,
    ) -> Result<Tensor, DiffusionError> {
        check::shape("the noise", noise, &[-1, -1, -1, -1])?;
        let (batch, channels, height, width) = noise.size4()?;
        check::shape(
            "the moments",
            moments,
            &[batch, 2 * channels, height, width],
        )?;
        let mean = moments.f_narrow(1, 0, channels)?;
        let std = moments.f_narrow(1, channels, channels)?;
        self.to_denoiser(&mean.f_addcmul(&std, noise)?)
    }

    /// The denoiser's input, `(latent - bias) * scale`, for an autoencoder's `latent`
    /// `[B, C, h, w]`.
    ///
    /// # Errors
    /// The number of channels differs from the number of entries.
    pub fn to_denoiser(&self, latent: &Tensor) -> Result<Tensor, DiffusionError> {
        check::shape("the latent", latent, &[-1, -1, -1, -1])?;
        self.check_channels(latent)?;
        Ok(latent.f_sub(&self.bias)?.f_mul(&self.scale)?)
    }

    /// The decoder's input, `z / scale + bias`, for a denoiser's latent `z` `[B, C, h, w]`.
    ///
    /// # Errors
    /// The number of channels differs from the number of entries.
    pub fn to_decoder(&self, z: &Tensor) -> Result<Tensor, DiffusionError> {
        check::shape("the latent", z, &[-1, -1, -1, -1])?;
        self.check_channels(z)?;
        Ok(z.f_div(&self.scale)?.f_add(&self.bias)?)
    }

    /// The scale, `[1, C, 1, 1]`, or `[1, 1, 1, 1]` for all channels.
    pub fn scale(&self) -> &Tensor {
        &self.scale
    }

    /// The bias, `[1, C, 1, 1]`, or `[1, 1, 1, 1]` for all channels.
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }

    fn check_channels(&self, latent: &Tensor) -> Result<(), DiffusionError> {
        let entries = self.scale.numel().max(self.bias.numel()) as i64;
        match entries {
            1 => Ok(()),
            _ => check::shape("the latent", latent, &[-1, entries, -1, -1]),
        }
    }
}
