//! Sampler that takes one or a few long steps with an average velocity,
//! `z_r = z_t - (t - r) u(z_t, r, t)` (`meanflow_sampler` of github.com/zhuyu-cs/MeanFlow;
//! arXiv 2505.13447, equation 12).

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::progress::{Progress, ProgressResult};
use super::times::linspace;
use crate::denoiser::Denoiser;
use crate::guidance::Guidance;
use crate::models::meanflow::MeanFlowSit;
use crate::{DiffusionError, check};

/// Settings of a [`MeanFlowSampler`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeanFlowSamplerConfig {
    /// Number of steps, at least 1. Each step calls the network once, with guidance on twice the batch.
    pub num_steps: usize,
    /// Scale of classifier-free guidance, `uncond + scale (cond - uncond)`. The value 1 means no
    /// guidance; use it for a network that was trained with guidance.
    pub cfg_scale: f64,
}

impl Default for MeanFlowSamplerConfig {
    /// The paper's settings: one step, and no guidance besides that of training.
    fn default() -> Self {
        Self {
            num_steps: 1,
            cfg_scale: 1.0,
        }
    }
}

/// A sampler with validated settings, for networks that predict an average velocity.
///
/// ```
/// use diffusion::SitConfig;
/// use diffusion::models::meanflow::MeanFlowSit;
/// use diffusion::samplers::meanflow::{MeanFlowSampler, MeanFlowSamplerConfig};
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::{Generator, Params};
///
/// # fn main() -> Result<(), diffusion::DiffusionError> {
/// let config = SitConfig { input_size: 16, ..SitConfig::named("SiT-XS/4")? };
/// let params = Params::new(Device::Cpu, 0)?;
/// let network = MeanFlowSit::new(&params.root(), &config)?;
///
/// let latents = Generator::new(Device::Cpu, 1)?.randn(&[2, 4, 16, 16], Kind::Float)?;
/// let labels = Tensor::from_slice(&[1i64, 2]);
/// let sampler = MeanFlowSampler::new(MeanFlowSamplerConfig::default())?;
/// let images = sampler.sample(&network, &latents, &labels, |_| {})?;
/// assert_eq!(images.size(), [2, 4, 16, 16]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct MeanFlowSampler {
    config: MeanFlowSamplerConfig,
}

impl MeanFlowSampler {
    /// Checks the settings.
    ///
    /// # Errors
    /// The first setting with an invalid value, by name.
    pub fn new(config: MeanFlowSamplerConfig) -> Result<Self, DiffusionError> {
        let MeanFlowSamplerConfig {
            num_steps,
            cfg_scale: scale,
        } = config;
        check::setting(num_steps > 0, "num_steps", num_steps, "at least 1")?;
        let fits = scale.is_finite() && scale >= 1.0;
        check::setting(fits, "cfg_scale", scale, "1 (no guidance) or more")?;
        Ok(Self { config })
    }

    /// The `num_steps + 1` times from 1 to 0 between which the sampler steps.
    pub fn times(&self) -> Vec<f64> {
        linspace(1.0, 0.0, self.config.num_steps + 1)
    }

    /// Integrates from standard normal `latents` `[B, C, H, W]` to images of the classes `labels`
    /// `[B]`. The state and the result are float64, as in [`Sampler`](super::Sampler); the network
    /// receives the state and the times in the dtype of the latents. No gradient is recorded.
    ///
    /// # Errors
    /// The network rejects the shapes or labels; guidance of a network without a null class; the
    /// error that `progress` returns.
    pub fn sample<V: ProgressResult>(
        &self,
        network: &MeanFlowSit,
        latents: &Tensor,
        labels: &Tensor,
        mut progress: impl FnMut(Progress<'_>) -> V,
    ) -> Result<Tensor, DiffusionError> {
        let [channels, height, width] = network.dimensions().image;
        check::shape("the latents", latents, &[-1, channels, height, width])?;
        check::shape("labels", labels, &[latents.size4()?.0])?;
        let guidance = Guidance::new(
            labels,
            self.config.cfg_scale,
            network.dimensions().null_class,
        )?;

        let _no_grad = tch::no_grad_guard();
        let velocity = |z: &Tensor, r: f64, t: f64| {
            guidance.apply(z, true, |z, labels| {
                let z = z.f_to_kind(latents.kind())?;
                let time = |time| Tensor::f_full(labels.size(), time, (z.kind(), z.device()));
                let output = network.forward(&z, &time(r)?, &time(t)?, labels, &[])?;
                Ok(output.prediction.f_to_kind(Kind::Double)?)
            })
        };

        let times = self.times();
        let mut z = latents.f_to_kind(Kind::Double)?;
        for (step, pair) in times.windows(2).enumerate() {
            let &[t, r] = pair else { continue };
            z = z.f_sub(&velocity(&z, r, t)?.f_mul_scalar_(t - r)?)?;
            progress(Progress {
                step: step + 1,
                steps: self.config.num_steps,
                time: r,
                state: &z,
            })
            .into_result()?;
        }
        Ok(z)
    }
}
