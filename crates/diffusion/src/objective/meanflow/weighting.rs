use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::DiffusionError;

/// The weighting of a sample's squared error `e`, a sum over C, H and W. Denominators are constants:
/// no gradient passes through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// `e / (e + 0.01)^p`, as in the paper and its official code.
    Adaptive,
    /// `e^2 / (e^2 + 0.001)^p`, as in github.com/zhuyu-cs/MeanFlow, which squares the error once more.
    AdaptiveSquared,
    /// `e`.
    Uniform,
}

impl Weighting {
    pub(super) fn apply(self, error: &Tensor, power: f64) -> Result<Tensor, DiffusionError> {
        let weighted = |error: Tensor, eps: f64| -> Result<Tensor, DiffusionError> {
            let scale = error.f_detach()?.f_add_scalar(eps)?;
            Ok(error.f_div(&scale.f_pow_tensor_scalar(power)?)?)
        };
        match self {
            Self::Adaptive => weighted(error.shallow_clone(), 0.01),
            Self::AdaptiveSquared => weighted(error.f_square()?, 1e-3),
            Self::Uniform => Ok(error.shallow_clone()),
        }
    }
}
