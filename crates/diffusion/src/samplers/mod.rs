//! ODE and SDE samplers that integrate from noise to images, with classifier-free guidance
//! (`ldm/samplers.py` upstream).
//!
//! [`Sampler`] is for networks that predict a velocity, [`jit::JitSampler`] for networks that predict
//! the image, [`meanflow::MeanFlowSampler`] for networks that predict an average velocity. The state of
//! [`Sampler`] is float64. The denoiser receives the state and the time in the dtype of the initial
//! latents.

mod guidance;
pub mod jit;
pub mod meanflow;
mod ode;
mod sde;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use torch_ext::Generator;

use crate::denoiser::Denoiser;
use crate::interpolant::Interpolant;
use crate::{DiffusionError, check};
use guidance::GuidedDenoiser;

/// Integrator, number of steps and guidance of a sampler.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerConfig {
    /// The integrator.
    pub method: Method,
    /// Number of steps, at least 1.
    pub num_steps: usize,
    /// Scale of classifier-free guidance, `uncond + scale (cond - uncond)`, at least 1. The value 1 means
    /// no guidance.
    pub cfg_scale: f64,
    /// Lower end of the guidance interval, inclusive. Time runs from 1 (noise) to 0 (image) for every
    /// sampler. [`jit::JitSampler`], whose own time runs the other way, converts both ends and treats
    /// them as exclusive.
    pub guidance_low: f64,
    /// Upper end of the guidance interval, inclusive.
    pub guidance_high: f64,
}

impl Default for SamplerConfig {
    /// The settings of the paper's evaluation: Euler-Maruyama, 250 steps, no guidance.
    fn default() -> Self {
        Self {
            method: Method::EulerMaruyama,
            num_steps: 250,
            cfg_scale: 1.0,
            guidance_low: 0.0,
            guidance_high: 1.0,
        }
    }
}

impl SamplerConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// The first setting with an invalid value, by name.
    pub fn validate(&self) -> Result<(), DiffusionError> {
        let Self {
            method: _,
            num_steps,
            cfg_scale: scale,
            guidance_low: low,
            guidance_high: high,
        } = *self;
        check::setting(num_steps > 0, "num_steps", num_steps, "at least 1")?;
        let fits = scale.is_finite() && scale >= 1.0;
        check::setting(fits, "cfg_scale", scale, "1 (no guidance) or more")?;
        let fits = (0.0..=1.0).contains(&low);
        check::setting(fits, "guidance_low", low, "between 0 and 1")?;
        let fits = (low..=1.0).contains(&high);
        let allowed = format!("between guidance_low = {low} and 1");
        check::setting(fits, "guidance_high", high, allowed)
    }
}

/// The integrators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Euler's method on the probability-flow ODE: one call of the denoiser per step.
    Euler,
    /// Heun's method on the probability-flow ODE: two calls per step, one in the last step.
    Heun,
    /// Euler-Maruyama on the reverse SDE with diffusion `2 t`: one call per step. The last step,
    /// from t = 0.04, adds no noise.
    EulerMaruyama,
}

/// The state of a sampler after a step.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Number of completed steps.
    pub step: usize,
    /// Total number of steps.
    pub steps: usize,
    /// Time of the state.
    pub time: f64,
    /// The state, `[B, C, H, W]`; float64 for [`Sampler`].
    pub state: &'a Tensor,
}

/// Return type of a progress callback: `()`, or a `Result` whose error stops the sampling.
pub trait ProgressResult {
    /// `Ok` to continue the sampling.
    ///
    /// # Errors
    /// The error that stops the sampling.
    fn into_result(self) -> Result<(), DiffusionError>;
}

impl ProgressResult for () {
    fn into_result(self) -> Result<(), DiffusionError> {
        Ok(())
    }
}

impl ProgressResult for Result<(), DiffusionError> {
    fn into_result(self) -> Result<(), DiffusionError> {
        self
    }
}

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
        let [channels, height, width] = denoiser.image_shape();
        check::shape("the latents", latents, &[-1, channels, height, width])?;
        check::shape("labels", labels, &[latents.size4()?.0])?;
        let guided = GuidedDenoiser::new(denoiser, &self.config, labels, latents.kind())?;

        let _no_grad = tch::no_grad_guard();
        let times = self.times();
        let steps = times.len() - 1;
        let mut x = latents.f_to_kind(Kind::Double)?;
        for (step, pair) in times.windows(2).enumerate() {
            let &[from, to] = pair else { continue };
            let last = step + 1 == steps;
            x = match self.config.method {
                Method::Euler => ode::euler(&guided, &x, from, to)?,
                Method::Heun if last => ode::euler(&guided, &x, from, to)?,
                Method::Heun => ode::heun(&guided, &x, from, to)?,
                Method::EulerMaruyama if last => {
                    sde::euler_maruyama(&guided, self.interpolant, &x, from, to, None)?
                }
                Method::EulerMaruyama => {
                    let noise = noise(&x.size())?;
                    check::shape("the noise", &noise, &x.size())?;
                    sde::euler_maruyama(&guided, self.interpolant, &x, from, to, Some(&noise))?
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

/// `count` equally spaced numbers from `start` to `end`, computed from the nearer end as
/// `torch.linspace` does. Accumulated steps could miss an end of the guidance interval by rounding.
fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    if count == 1 {
        return vec![start];
    }
    let step = (end - start) / count.saturating_sub(1) as f64;
    (0..count)
        .map(|index| {
            if index < count / 2 {
                start + step * index as f64
            } else {
                end - step * (count - 1 - index) as f64
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::linspace;

    #[test]
    fn linspace_agrees_with_torch_to_one_rounding() {
        for count in 1..300 {
            for end in [0.0, 0.04] {
                let torch = Tensor::linspace(1.0, end, count, (Kind::Double, Device::Cpu));
                let torch = Vec::<f64>::try_from(torch).unwrap();
                let ours = linspace(1.0, end, count as usize);
                assert_eq!(ours.len(), torch.len());
                for (ours, torch) in ours.iter().zip(&torch) {
                    assert!(
                        (ours - torch).abs() <= f64::EPSILON / 2.0,
                        "{count}: {ours} {torch}"
                    );
                }
            }
        }
    }

    #[test]
    fn linspace_meets_both_ends() {
        for count in 2..300 {
            let times = linspace(1.0, 0.04, count);
            assert_eq!((times[0], times[count - 1]), (1.0, 0.04));
        }
    }
}
