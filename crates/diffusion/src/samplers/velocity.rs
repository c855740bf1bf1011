//! Sampler for denoisers that predict a velocity (`ldm/samplers.py` upstream).

use tch::{Kind, Tensor};
use torch_ext::Generator;

use super::config::{Method, SamplerConfig};
use super::guided_velocity::GuidedVelocity;
use super::progress::{Progress, ProgressResult};
use super::times::linspace;
use super::{ode, sde};
use crate::denoiser::Denoiser;
use crate::guidance::Guidance;
use crate::interpolant::Interpolant;
use crate::{DiffusionError, check};

/// A sampler with validated settings, for denoisers that predict a velocity.
///
/// ```
/// use diffusion::samplers::{Method, Sampler, SamplerConfig};
/// use diffusion::{Interpolant, Sit, SitConfig};
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::{Generator, Params};
///
/// # fn main() -> Result<(), diffusion::DiffusionError> {
/// let config = SitConfig { input_size: 16, ..SitConfig::named("SiT-XS/4")? };
/// let params = Params::new(Device::Cpu, 0)?;
/// let sit = Sit::new(&params.root(), &config)?;
///
/// let mut generator = Generator::new(Device::Cpu, 1)?;
/// let latents = generator.randn(&[2, 4, 16, 16], Kind::Float)?;
/// let labels = Tensor::from_slice(&[1i64, 2]);
/// let config = SamplerConfig { method: Method::Heun, num_steps: 4, ..Default::default() };
/// let sampler = Sampler::new(config, Interpolant::Linear)?;
/// let images = sampler.sample(&sit, &latents, &labels, &mut generator, |progress| {
///     println!("{} of {}", progress.step, progress.steps);
/// })?;
/// assert_eq!(images.size(), [2, 4, 16, 16]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Sampler {
    config: SamplerConfig,
    interpolant: Interpolant,
}

impl Sampler {
    /// A sampler for a denoiser that was trained to predict the velocity of `interpolant`.
    ///
    /// # Errors
    /// The first setting with an invalid value, by name.
    pub fn new(config: SamplerConfig, interpolant: Interpolant) -> Result<Self, DiffusionError> {
        config.validate()?;
        Ok(Self {
            config,
            interpolant,
        })
    }

    /// The `num_steps + 1` times from 1 to 0 between which the sampler steps.
    pub fn times(&self) -> Vec<f64> {
        let steps = self.config.num_steps;
        match self.config.method {
            Method::Euler | Method::Heun => linspace(1.0, 0.0, steps + 1),
            Method::EulerMaruyama => {
                let mut times = linspace(1.0, sde::LAST_TIME, steps);
                times.push(0.0);
                times
            }
        }
    }

    /// Integrates from standard normal `latents` `[B, C, H, W]` to images of the classes `labels`
    /// `[B]`. The result is float64. No gradient is recorded. Only Euler-Maruyama draws from
    /// `generator`: float64 noise before each noisy step.
    ///
    /// # Errors
    /// The denoiser rejects the shapes or labels; guidance of a denoiser without a null class; the
    /// error that `progress` returns.
    pub fn sample<V: ProgressResult>(
        &self,
        denoiser: &dyn Denoiser,
        latents: &Tensor,
        labels: &Tensor,
        generator: &mut Generator,
        progress: impl FnMut(Progress<'_>) -> V,
    ) -> Result<Tensor, DiffusionError> {
        let device = latents.device();
        let noise = |size: &[i64]| -> Result<Tensor, DiffusionError> {
            let noise = generator.randn(size, Kind::Double)?;
            Ok(noise.f_to_device(device)?)
        };
        self.sample_with(denoiser, latents, labels, noise, progress)
    }

    /// As [`Sampler::sample`], but with the caller's noise: `noise` receives a shape and returns the
    /// standard normal noise of the next step in that shape, float64.
    ///
    /// # Errors
    /// As [`Sampler::sample`]; the error that `noise` returns.
    pub fn sample_with<V: ProgressResult>(
        &self,
        denoiser: &dyn Denoiser,
        latents: &Tensor,
        labels: &Tensor,
        mut noise: impl FnMut(&[i64]) -> Result<Tensor, DiffusionError>,
        mut progress: impl FnMut(Progress<'_>) -> V,
    ) -> Result<Tensor, DiffusionError> {
        let [channels, height, width] = denoiser.dimensions().image;
        check::shape("the latents", latents, &[-1, channels, height, width])?;
        check::shape("labels", labels, &[latents.size4()?.0])?;
        let guidance = Guidance::new(
            labels,
            self.config.cfg_scale,
            denoiser.dimensions().null_class,
        )?;
        let interval = self.config.guidance_low..=self.config.guidance_high;
        let velocity = GuidedVelocity {
            denoiser,
            guidance,
            interval,
            kind: latents.kind(),
        };

        let _no_grad = tch::no_grad_guard();
        let times = self.times();
        let steps = times.len() - 1;
        let mut x = latents.f_to_kind(Kind::Double)?;
        for (step, pair) in times.windows(2).enumerate() {
            let &[from, to] = pair else { continue };
            let last = step + 1 == steps;
            x = match self.config.method {
                Method::Euler => ode::euler(&velocity, &x, from, to)?,
                Method::Heun if last => ode::euler(&velocity, &x, from, to)?,
                Method::Heun => ode::heun(&velocity, &x, from, to)?,
                Method::EulerMaruyama if last => {
                    sde::euler_maruyama(&velocity, self.interpolant, &x, from, to, None)?
                }
                Method::EulerMaruyama => {
                    let noise = noise(&x.size())?;
                    check::shape("the noise", &noise, &x.size())?;
                    sde::euler_maruyama(&velocity, self.interpolant, &x, from, to, Some(&noise))?
                }
            };
            progress(Progress {
                step: step + 1,
                steps,
                time: to,
                state: &x,
            })
            .into_result()?;
        }
        Ok(x)
    }
}
