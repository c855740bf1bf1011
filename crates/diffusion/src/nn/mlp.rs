//! The MLPs of transformer blocks.

use tch::Tensor;
use torch_ext::{Init, Scope};

use super::dropout::Dropout;
use super::linear::Linear;
use crate::{DiffusionError, Mode};

/// Two linear layers with the tanh form of GELU between them (`Mlp` of timm).
#[derive(Debug)]
pub struct Mlp {
    /// From `width` to `inner`.
    pub fc1: Linear,
    /// From `inner` to `width`.
    pub fc2: Linear,
}

impl Mlp {
    /// Declares the weights, Xavier-uniform.
    ///
    /// # Errors
    /// A weight name is already declared.
    pub fn new(scope: &Scope, width: i64, inner: i64) -> Result<Self, DiffusionError> {
        Ok(Self {
            fc1: Linear::new(&scope.sub("fc1"), width, inner, Init::XavierUniform)?,
            fc2: Linear::new(&scope.sub("fc2"), inner, width, Init::XavierUniform)?,
        })
    }

    /// Maps tokens `[B, T, D]` to tokens of the same shape.
    ///
    /// # Errors
    /// The last dimension of `x` is not `width`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        self.fc2.forward(&ops::gelu(&self.fc1.forward(x)?)?)
    }
}

/// `w3(silu(x1) x2)` with `[x1, x2] = w12(x)` (`SwiGLUFFN` of JiT).
#[derive(Debug)]
pub struct SwiGlu {
    /// From `width` to `2 inner`.
    pub w12: Linear,
    /// From `inner` to `width`.
    pub w3: Linear,
    /// Applied before `w3`.
    pub ffn_dropout: Dropout,
}

impl SwiGlu {
    /// Declares the weights, Xavier-uniform. `dropout` is the rate of the dropout before `w3`.
    ///
    /// # Errors
    /// A weight name is already declared.
    pub fn new(
        scope: &Scope,
        width: i64,
        inner: i64,
        dropout: f64,
    ) -> Result<Self, DiffusionError> {
        let init = Init::XavierUniform;
        Ok(Self {
            w12: Linear::new(&scope.sub("w12"), width, 2 * inner, init)?,
            w3: Linear::new(&scope.sub("w3"), inner, width, init)?,
            ffn_dropout: Dropout { rate: dropout },
        })
    }

    /// Maps tokens `[B, T, D]` to tokens of the same shape.
    ///
    /// # Errors
    /// The last dimension of `x` is not `width`.
    pub fn forward(&self, x: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor, DiffusionError> {
        let x = ops::swiglu(&self.w12.forward(x)?)?; // [B, T, inner]
        self.w3.forward(&self.ffn_dropout.forward(x, mode)?)
    }
}
