//! JiT's objective: predict the clean image and compare velocities (arXiv 2511.13720, algorithm 1;
//! `Denoiser.forward` upstream).
//!
//! The interpolant `z_t = t x + (1 - t) noise` runs from noise at t = 0 to the image at t = 1, with
//! velocity `v = (x - z) / (1 - t)`. The network predicts `x`. The loss is the squared error of the
//! velocity that follows from the prediction; in both velocities, `1 - t` is clamped to at least
//! `t_eps`.
//!
//! A step has three parts, so that only the network runs under autocast: [`XPrediction::draw`], the
//! network, [`XPrediction::loss`].

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};
use torch_ext::Generator;

use crate::denoiser::drop_labels;
use crate::interpolant::per_sample;
use crate::{DiffusionError, check};

/// The x-prediction objective and its settings.
///
/// ```
/// use diffusion::objective::x_prediction::XPrediction;
/// use diffusion::{Denoiser, Jit, JitConfig, Mode};
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::{Generator, Params};
///
/// # fn main() -> Result<(), diffusion::DiffusionError> {
/// let config = JitConfig { num_classes: 10, ..JitConfig::named("JiT-XS/4")? };
/// let params = Params::new(Device::Cpu, 0)?;
/// let jit = Jit::new(&params.root(), &config)?;
/// let mut generator = Generator::new(Device::Cpu, 1)?;
///
/// let images = generator.randn(&[2, 3, 32, 32], Kind::Float)?;
/// let labels = Tensor::from_slice(&[3i64, 5]);
/// let objective = XPrediction::default();
/// let noisy = objective.draw(&images, &labels, config.num_classes, &mut generator)?;
/// let mode = Mode::Train(&mut generator);
/// let output = jit.forward(&noisy.z, &noisy.t, &noisy.labels, &[], mode)?;
/// let loss = objective.loss(&output.prediction, &noisy)?;
/// assert_eq!(loss.size(), [2]);
/// loss.mean(None).backward();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct XPrediction {
    /// Mean of the normal number whose sigmoid is the time (`P_mean` upstream). Below 0, most times
    /// are closer to noise.
    pub time_mean: f64,
    /// Standard deviation of that number, at least 0 (`P_std` upstream).
    pub time_std: f64,
    /// Lower bound of the divisor `1 - t` of a velocity, above 0.
    pub t_eps: f64,
    /// Standard deviation of the noise, above 0. In the paper it grows with the image size: 1 at 256
    /// pixels and 2 at 512.
    pub noise_scale: f64,
    /// Fraction of the labels that are replaced by the null class, in [0, 1]. It is not part of the
    /// objective's section in a file, since it is the same for every objective.
    #[serde(skip)]
    pub label_dropout: f64,
}

impl Default for XPrediction {
    /// The paper's settings for images of 256 x 256 pixels.
    fn default() -> Self {
        Self {
            time_mean: -0.8,
            time_std: 0.8,
            t_eps: 0.05,
            noise_scale: 1.0,
            label_dropout: 0.1,
        }
    }
}

/// A noisy batch, with labels for the network and the target velocity.
#[derive(Debug)]
pub struct NoisyBatch {
    /// Noisy images `z_t`, `[B, C, H, W]`.
    pub z: Tensor,
    /// Times, `[B]`.
    pub t: Tensor,
    /// Labels for the network, `[B]`, some of them the null class.
    pub labels: Tensor,
    /// The velocity at `z_t`, `[B, C, H, W]`.
    pub target: Tensor,
}

impl XPrediction {
    /// Checks the settings.
    ///
    /// # Errors
    /// The first setting with an invalid value, by name.
    pub fn validate(&self) -> Result<(), DiffusionError> {
        let Self {
            time_mean,
            time_std,
            t_eps,
            noise_scale,
            label_dropout,
        } = *self;
        let positive = |value: f64| value.is_finite() && value > 0.0;
        for (fits, name, value, allowed) in [
            (time_mean.is_finite(), "time_mean", time_mean, "finite"),
            (
                time_std.is_finite() && time_std >= 0.0,
                "time_std",
                time_std,
                "0 or more",
            ),
            (positive(t_eps), "t_eps", t_eps, "above 0"),
            (positive(noise_scale), "noise_scale", noise_scale, "above 0"),
            (
                (0.0..=1.0).contains(&label_dropout),
                "label_dropout",
                label_dropout,
                "between 0 and 1",
            ),
        ] {
            check::setting(fits, name, value, allowed)?;
        }
        Ok(())
    }

    /// Adds noise to images `x` `[B, C, H, W]` and replaces some of `labels` `[B]` by the network's
    /// `null_class`. Label dropout draws first, then times, then noise, as upstream does; the
    /// network's own dropout draws after that. Numbers are drawn on the generator's device and
    /// moved to the device of the images.
    ///
    /// # Errors
    /// [`XPrediction::validate`] rejects the settings, or the shapes do not match.
    pub fn draw(
        &self,
        x: &Tensor,
        labels: &Tensor,
        null_class: i64,
        generator: &mut Generator,
    ) -> Result<NoisyBatch, DiffusionError> {
        self.validate()?;
        check::shape("the batch of images", x, &[-1, -1, -1, -1])?;
        let (batch, ..) = x.size4()?;
        check::shape("labels", labels, &[batch])?;
        let draws = generator.rand(&[batch], Kind::Float)?;
        let labels = drop_labels(labels, &draws, self.label_dropout, null_class)?;
        let t = self.times(&generator.randn(&[batch], Kind::Float)?)?;
        let noise = generator.randn(&x.size(), x.kind())?;
        let device = x.device();
        self.add_noise(
            x,
            &labels,
            &t.f_to_device(device)?,
            &noise.f_to_device(device)?,
        )
    }

    /// Maps standard normal numbers to times `sigmoid(normal time_std + time_mean)` of the same shape
    /// (`sample_t` upstream).
    ///
    /// # Errors
    /// libtorch rejects `normal`.
    pub fn times(&self, normal: &Tensor) -> Result<Tensor, DiffusionError> {
        Ok(normal
            .f_mul_scalar(self.time_std)?
            .f_add_scalar(self.time_mean)?
            .f_sigmoid()?)
    }

    /// As [`XPrediction::draw`], but with the caller's `labels` `[B]` after dropout, times `t` `[B]`
    /// and standard normal `noise` `[B, C, H, W]`.
    ///
    /// # Errors
    /// As [`XPrediction::draw`].
    pub fn add_noise(
        &self,
        x: &Tensor,
        labels: &Tensor,
        t: &Tensor,
        noise: &Tensor,
    ) -> Result<NoisyBatch, DiffusionError> {
        self.validate()?;
        check::shape("the noise", noise, &x.size())?;
        let t = t.f_to_kind(x.kind())?;
        let image_weight = per_sample(&t, x)?;
        let noise = noise.f_mul_scalar(self.noise_scale)?;
        let z = x
            .f_mul(&image_weight)?
            .f_add_(&noise.f_mul(&image_weight.f_rsub_scalar(1.0)?)?)?;
        Ok(NoisyBatch {
            target: self.velocity(x, &z, &t)?,
            z,
            t,
            labels: labels.shallow_clone(),
        })
    }

    /// The velocity `(image - z) / max(1 - t, t_eps)` from `z` `[B, C, H, W]` at times `t` `[B]` to
    /// `image`, which is a clean image or a prediction of one.
    ///
    /// # Errors
    /// The shapes do not match.
    pub fn velocity(
        &self,
        image: &Tensor,
        z: &Tensor,
        t: &Tensor,
    ) -> Result<Tensor, DiffusionError> {
        check::shape("the image", image, &z.size())?;
        let remaining_time = per_sample(t, z)?
            .f_rsub_scalar(1.0)?
            .f_clamp_min(self.t_eps)?;
        Ok(image.f_sub(z)?.f_div(&remaining_time)?)
    }

    /// The mean squared error per sample, `[B]`, of the velocity that follows from the predicted image
    /// `prediction` `[B, C, H, W]`, in the target's dtype.
    ///
    /// # Errors
    /// The shapes of the prediction and the target differ.
    pub fn loss(&self, prediction: &Tensor, noisy: &NoisyBatch) -> Result<Tensor, DiffusionError> {
        check::shape("the prediction", prediction, &noisy.target.size())?;
        let prediction = prediction.f_to_kind(noisy.target.kind())?;
        let error = self
            .velocity(&prediction, &noisy.z, &noisy.t)?
            .f_mse_loss(&noisy.target, Reduction::None)?;
        Ok(error.f_flatten(1, -1)?.f_mean_dim(1, false, None::<Kind>)?)
    }
}
