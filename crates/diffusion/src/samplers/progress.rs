//! Progress of a sampler.

use tch::Tensor;

use crate::DiffusionError;

/// The state of a sampler after a step.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Number of completed steps.
    pub step: usize,
    /// Total number of steps.
    pub steps: usize,
    /// Time of the state.
    pub time: f64,
    /// The state, `[B, C, H, W]`; float64 for [`Sampler`](super::Sampler).
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
