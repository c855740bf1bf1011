//! The linear layer.

use tch::Tensor;
use torch_ext::{Init, Scope};

use crate::DiffusionError;

/// `x W^T + b`.
#[derive(Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Tensor,
}

impl Linear {
    /// Declares `weight`, initialised with `init`, and a `bias` of zeros.
    ///
    /// # Errors
    /// A weight name is already declared.
    pub fn new(
        scope: &Scope,
        in_width: i64,
        out_width: i64,
        init: Init,
    ) -> Result<Self, DiffusionError> {
        Ok(Self {
            weight: scope.cast_var("weight", &[out_width, in_width], init)?,
            bias: scope.cast_var("bias", &[out_width], Init::Zeros)?,
        })
    }

    /// Maps `[..., in]` to `[..., out]`.
    ///
    /// # Errors
    /// The last dimension of `x` is not `in`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        Ok(x.f_linear(&self.weight, Some(&self.bias))?)
    }
}
