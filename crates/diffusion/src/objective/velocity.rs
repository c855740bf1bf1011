//! Flow matching: predict the velocity `d x_t / dt` (arXiv 2401.08740, equation 6; `SILoss`
//! upstream).
//!
//! A step has three parts, so that only the network runs under autocast: [`Velocity::draw`], the
//! network, [`Velocity::loss`].

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};
use torch_ext::Generator;

use crate::interpolant::{Interpolant, TimeSampling};
use crate::{DiffusionError, check};

/// The velocity objective and its settings.
///
/// ```
/// use diffusion::objective::velocity::Velocity;
/// use diffusion::{Denoiser, Mode, Sit, SitConfig};
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::{Generator, Params};
///
/// # fn main() -> Result<(), diffusion::DiffusionError> {
/// let config = SitConfig { input_size: 16, ..SitConfig::named("SiT-XS/2")? };
/// let params = Params::new(Device::Cpu, 0)?;
/// let sit = Sit::new(&params.root(), &config)?;
/// let mut generator = Generator::new(Device::Cpu, 1)?;
///
/// let x0 = generator.randn(&[2, 4, 16, 16], Kind::Float)?;
/// let labels = Tensor::from_slice(&[3i64, 5]);
/// let objective = Velocity::default();
/// let noisy = objective.draw(&x0, &mut generator)?;
/// let output = sit.forward(&noisy.x, &noisy.t, &labels, &[], Mode::Train(&mut generator))?;
/// let loss = objective.loss(&output.prediction, &noisy)?;
/// assert_eq!(loss.size(), [2]);
/// loss.mean(None).backward();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Velocity {
    /// The interpolant between images and noise.
    pub path: Interpolant,
    /// How times are drawn.
    pub time: TimeSampling,
}

/// A noisy batch and the network's target.
#[derive(Debug)]
pub struct NoisyBatch {
    /// Noisy images `x_t`, `[B, C, H, W]`.
    pub x: Tensor,
    /// Times, `[B]`.
    pub t: Tensor,
    /// The velocity at `x_t`, `[B, C, H, W]`.
    pub target: Tensor,
}

impl Velocity {
    /// Draws times and noise, and adds the noise to images `x0` `[B, C, H, W]`. Times are drawn
    /// first, then noise, as upstream does; the network's label dropout draws third. Numbers are
    /// drawn on the generator's device and moved to the device of the images.
    ///
    /// # Errors
    /// `x0` does not have four dimensions.
    pub fn draw(
        &self,
        x0: &Tensor,
        generator: &mut Generator,
    ) -> Result<NoisyBatch, DiffusionError> {
        check::shape("the batch of images", x0, &[-1, -1, -1, -1])?;
        let (batch, ..) = x0.size4()?;
        let t = self.time.draw(self.path, batch, generator)?;
        let noise = generator.randn(&x0.size(), x0.kind())?;
        let device = x0.device();
        self.add_noise(x0, &t.f_to_device(device)?, &noise.f_to_device(device)?)
    }

    /// As [`Velocity::draw`], but with the caller's times `t` `[B]` and `noise` `[B, C, H, W]`.
    ///
    /// # Errors
    /// The shapes do not match.
    pub fn add_noise(
        &self,
        x0: &Tensor,
        t: &Tensor,
        noise: &Tensor,
    ) -> Result<NoisyBatch, DiffusionError> {
        let t = t.f_to_kind(x0.kind())?;
        let (x, target) = self.path.interpolate(x0, noise, &t)?;
        Ok(NoisyBatch { x, t, target })
    }

    /// The mean squared error of `prediction` `[B, C, H, W]` per sample, `[B]`, in the target's
    /// dtype.
    ///
    /// # Errors
    /// The shapes of the prediction and the target differ.
    pub fn loss(&self, prediction: &Tensor, noisy: &NoisyBatch) -> Result<Tensor, DiffusionError> {
        check::shape("the prediction", prediction, &noisy.target.size())?;
        let kind = noisy.target.kind();
        let error = prediction
            .f_to_kind(kind)?
            .f_mse_loss(&noisy.target, Reduction::None)?;
        Ok(error.f_flatten(1, -1)?.f_mean_dim(1, false, None::<Kind>)?)
    }
}
