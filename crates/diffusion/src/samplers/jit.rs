//! Sampler for networks that predict the clean image (`Denoiser.generate` upstream).
//!
//! Time runs from 0 (noise) to 1 (image). Unlike in [`Sampler`](super::Sampler), the state has the
//! dtype of the noise, and times are float32, as upstream.

use tch::{Device, Kind, Tensor};

use super::config::{Method, SamplerConfig};
use super::progress::{Progress, ProgressResult};
use crate::denoiser::{Denoiser, Mode};
use crate::guidance::Guidance;
use crate::objective::x_prediction::XPrediction;
use crate::{DiffusionError, check};

/// A sampler with validated settings, for networks that predict the clean image.
///
/// Guidance is applied to predicted images, `uncond + scale (cond - uncond)`. The interval of
/// [`SamplerConfig`] is in the time of the other samplers, which is `1 - t` here: with upstream's
/// `interval_min` and `interval_max`, `guidance_low` is `1 - interval_max` and `guidance_high` is
/// `1 - interval_min`. Both ends are exclusive, as upstream, except that a `guidance_high` of 1 includes
/// pure noise. Each of Heun's two evaluations is guided according to its own time. The last step is an
/// Euler step.
///
/// ```
/// use diffusion::objective::x_prediction::XPrediction;
/// use diffusion::samplers::jit::JitSampler;
/// use diffusion::samplers::{Method, SamplerConfig};
/// use diffusion::{Jit, JitConfig};
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::{Generator, Params};
///
/// # fn main() -> Result<(), diffusion::DiffusionError> {
/// let params = Params::new(Device::Cpu, 0)?;
/// let jit = Jit::new(&params.root(), &JitConfig::named("JiT-XS/4")?)?;
///
/// let mut generator = Generator::new(Device::Cpu, 1)?;
/// let noise = generator.randn(&[2, 3, 32, 32], Kind::Float)?;
/// let labels = Tensor::from_slice(&[1i64, 2]);
/// let config = SamplerConfig {
///     method: Method::Heun,
///     num_steps: 4,
///     cfg_scale: 2.9,
///     guidance_high: 0.9,
///     ..Default::default()
/// };
/// let sampler = JitSampler::new(config, XPrediction::default())?;
/// let images = sampler.sample(&jit, &noise, &labels, |progress| {
///     println!("{} of {}", progress.step, progress.steps);
/// })?;
/// assert_eq!(images.size(), [2, 3, 32, 32]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct JitSampler {
    config: SamplerConfig,
    objective: XPrediction,
}

impl JitSampler {
    /// A sampler for a network that was trained with `objective`. It uses the objective's `t_eps` and
    /// `noise_scale`.
    ///
    /// # Errors
    /// The first setting with an invalid value, by name. The Euler-Maruyama method is invalid.
    pub fn new(config: SamplerConfig, objective: XPrediction) -> Result<Self, DiffusionError> {
        config.validate()?;
        objective.validate()?;
        let fits = config.method != Method::EulerMaruyama;
        check::setting(fits, "method", "euler-maruyama", "euler or heun for JiT")?;
        Ok(Self { config, objective })
    }

    /// The `num_steps + 1` times from 0 to 1 between which the sampler steps.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn times(&self) -> Result<Vec<f32>, DiffusionError> {
        let count = self.config.num_steps as i64 + 1;
        let times = Tensor::f_linspace(0.0, 1.0, count, (Kind::Float, Device::Cpu))?;
        Ok(Vec::<f32>::try_from(times)?)
    }

    /// Integrates from standard normal `noise` `[B, C, H, W]` to images of the classes `labels` `[B]`,
    /// in the dtype of the noise. It records no gradient and draws no random numbers.
    ///
    /// # Errors
    /// The denoiser rejects the shapes or labels; guidance of a denoiser without a null class; the
    /// error that `progress` returns.
    pub fn sample<V: ProgressResult>(
        &self,
        denoiser: &dyn Denoiser,
        noise: &Tensor,
        labels: &Tensor,
        mut progress: impl FnMut(Progress<'_>) -> V,
    ) -> Result<Tensor, DiffusionError> {
        let [channels, height, width] = denoiser.dimensions().image;
        check::shape("the noise", noise, &[-1, channels, height, width])?;
        check::shape("labels", labels, &[noise.size4()?.0])?;
        let velocity = GuidedVelocity {
            sampler: self,
            denoiser,
            guidance: Guidance::new(
                labels,
                self.config.cfg_scale,
                denoiser.dimensions().null_class,
            )?,
        };

        let _no_grad = tch::no_grad_guard();
        let times = self.times()?;
        let steps = self.config.num_steps;
        let mut z = noise.f_mul_scalar(self.objective.noise_scale)?;
        for (step, pair) in times.windows(2).enumerate() {
            let &[from, to] = pair else { continue };
            let last = step + 1 == steps;
            let dt = f64::from(to - from);
            let mut slope = velocity.evaluate(&z, from)?;
            if self.config.method == Method::Heun && !last {
                let predicted = slope.f_mul_scalar(dt)?.f_add_(&z)?;
                slope = slope
                    .f_add(&velocity.evaluate(&predicted, to)?)?
                    .f_mul_scalar_(0.5)?;
            }
            z = slope.f_mul_scalar_(dt)?.f_add_(&z)?;
            progress(Progress {
                step: step + 1,
                steps,
                time: f64::from(to),
                state: &z,
            })
            .into_result()?;
        }
        Ok(z)
    }
}

/// The velocity that follows from a denoiser's predicted images, guided within the interval.
struct GuidedVelocity<'a> {
    sampler: &'a JitSampler,
    denoiser: &'a dyn Denoiser,
    guidance: Guidance<'a>,
}

impl GuidedVelocity<'_> {
    fn evaluate(&self, z: &Tensor, t: f32) -> Result<Tensor, DiffusionError> {
        let guide = self.guides_at(t);
        let image = self.guidance.apply(z, guide, |z, labels| {
            let output = self
                .denoiser
                .forward(z, &times(z, t)?, labels, &[], Mode::Eval)?;
            Ok(output.prediction.f_to_kind(z.kind())?)
        })?;
        self.sampler.objective.velocity(&image, z, &times(z, t)?)
    }

    /// Whether `t` is in the guidance interval. The comparison is in float32, as upstream: in float64, a
    /// bound that equals one of the times could compare as later.
    fn guides_at(&self, t: f32) -> bool {
        let low = (1.0 - self.sampler.config.guidance_high) as f32;
        let high = (1.0 - self.sampler.config.guidance_low) as f32;
        t < high && (low == 0.0 || t > low)
    }
}

/// `t` for each sample of `z`, `[B]`.
fn times(z: &Tensor, t: f32) -> Result<Tensor, DiffusionError> {
    let (count, ..) = z.size4()?;
    Ok(Tensor::f_full(
        [count],
        f64::from(t),
        (z.kind(), z.device()),
    )?)
}
