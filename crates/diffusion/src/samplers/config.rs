//! Settings of samplers.

use serde::{Deserialize, Serialize};

use crate::{DiffusionError, check};

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
    /// sampler. [`JitSampler`](super::jit::JitSampler), whose own time runs the other way, converts both ends and treats
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
