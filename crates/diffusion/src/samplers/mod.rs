//! ODE and SDE samplers that integrate from noise to images, with classifier-free guidance
//! (`ldm/samplers.py` upstream).
//!
//! [`Sampler`] is for networks that predict a velocity, [`jit::JitSampler`] for networks that predict
//! the image, [`meanflow::MeanFlowSampler`] for networks that predict an average velocity. The state of
//! [`Sampler`] is float64. The denoiser receives the state and the time in the dtype of the initial
//! latents.

mod config;
mod guided_velocity;
pub mod jit;
pub mod meanflow;
mod ode;
mod progress;
mod sde;
mod times;
mod velocity;

pub use config::{Method, SamplerConfig};
pub use progress::{Progress, ProgressResult};
pub use velocity::Sampler;
