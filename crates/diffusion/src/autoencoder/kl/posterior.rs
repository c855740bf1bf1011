//! The posterior over latents: a Gaussian with a diagonal covariance.

use tch::{Kind, Tensor};
use torch_ext::Generator;

use crate::{DiffusionError, check};

/// Range to which the logarithm of the variance is clamped.
const LOG_VARIANCE: (f64, f64) = (-30.0, 20.0);

/// The Gaussian `q(z | image)` (`DiagonalGaussianDistribution` upstream).
#[derive(Debug)]
pub struct Posterior {
    mean: Tensor,
    log_variance: Tensor,
}

impl Posterior {
    /// The posterior with these moments `[B, 2 C, h, w]`: the first half of the channels is the mean,
    /// the second half the logarithm of the variance, which is clamped to [-30, 20].
    ///
    /// # Errors
    /// `moments` does not have four dimensions, or the number of channels is odd or 0.
    pub fn new(moments: &Tensor) -> Result<Self, DiffusionError> {
        check::shape("the moments", moments, &[-1, -1, -1, -1])?;
        let (_, channels, ..) = moments.size4()?;
        let allowed = "even: a mean and a log-variance for each channel of the latent";
        let fits = channels > 0 && channels % 2 == 0;
        check::setting(
            fits,
            "the number of channels of the moments",
            channels,
            allowed,
        )?;
        let half = channels / 2;
        let (low, high) = LOG_VARIANCE;
        Ok(Self {
            mean: moments.f_narrow(1, 0, half)?,
            log_variance: moments.f_narrow(1, half, half)?.f_clamp(low, high)?,
        })
    }

    /// The mean, which is also the mode, `[B, C, h, w]`.
    pub fn mode(&self) -> &Tensor {
        &self.mean
    }

    /// The logarithm of the variance, clamped, `[B, C, h, w]`.
    pub fn log_variance(&self) -> &Tensor {
        &self.log_variance
    }

    /// The standard deviation, `[B, C, h, w]`.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn std(&self) -> Result<Tensor, DiffusionError> {
        Ok(self.log_variance.f_mul_scalar(0.5)?.f_exp()?)
    }

    /// A random sample `[B, C, h, w]`. Numbers are drawn in float32 on the generator's device and moved
    /// to the device of the moments.
    ///
    /// # Errors
    /// Out of memory.
    pub fn sample(&self, generator: &mut Generator) -> Result<Tensor, DiffusionError> {
        let noise = generator.randn(&self.mean.size(), Kind::Float)?;
        self.sample_with_noise(&noise.f_to_device(self.mean.device())?)
    }

    /// The sample `mean + std noise` for standard normal `noise` `[B, C, h, w]`.
    ///
    /// # Errors
    /// `noise` has another shape.
    pub fn sample_with_noise(&self, noise: &Tensor) -> Result<Tensor, DiffusionError> {
        check::shape("the posterior's noise", noise, &self.mean.size())?;
        Ok(self.mean.f_addcmul(&self.std()?, noise)?)
    }

    /// The KL divergence from a standard normal per sample, `[B]`, in nats:
    /// `0.5 sum(mean^2 + var - 1 - log var)`.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn kl(&self) -> Result<Tensor, DiffusionError> {
        let terms = self
            .mean
            .f_square()?
            .f_add(&self.log_variance.f_exp()?)?
            .f_sub_scalar(1.0)?
            .f_sub(&self.log_variance)?;
        let sum = terms.f_sum_dim_intlist([1, 2, 3].as_slice(), false, None)?;
        Ok(sum.f_mul_scalar(0.5)?)
    }

    /// Mean and standard deviation, concatenated along the channels, `[B, 2 C, h, w]`. A latent data set
    /// stores these moments, and
    /// [`LatentScaling::sample_posterior`](crate::latents::LatentScaling::sample_posterior) takes them.
    ///
    /// # Errors
    /// Out of memory.
    pub fn to_stored(&self) -> Result<Tensor, DiffusionError> {
        Ok(Tensor::f_cat(&[self.mean.shallow_clone(), self.std()?], 1)?)
    }
}
