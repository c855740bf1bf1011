//! Norms over the last dimension.

use tch::Tensor;
use torch_ext::{Init, Scope};

use crate::DiffusionError;

/// A norm of tokens that is followed by a modulation.
pub trait Norm {
    /// `norm(x) (1 + scale) + shift` for tokens `x` `[B, T, D]`, with `shift` and `scale` `[B, 1, D]` (`modulate`
    /// upstream).
    ///
    /// # Errors
    /// The shapes do not match.
    fn modulated(
        &self,
        x: &Tensor,
        shift: &Tensor,
        scale: &Tensor,
    ) -> Result<Tensor, DiffusionError>;
}

/// Layer norm without weights.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm;

impl LayerNorm {
    /// Added to the variance.
    pub const EPS: f64 = 1e-6;
}

impl Norm for LayerNorm {
    fn modulated(
        &self,
        x: &Tensor,
        shift: &Tensor,
        scale: &Tensor,
    ) -> Result<Tensor, DiffusionError> {
        let norm = ops::Norm::Layer;
        Ok(ops::norm_modulate(x, norm, shift, scale, Self::EPS)?)
    }
}

/// RMS norm: `x / sqrt(mean(x^2) + 1e-6) * weight`.
#[derive(Debug)]
pub struct RmsNorm {
    /// `[width]`.
    pub weight: Tensor,
}

impl RmsNorm {
    /// Added to the mean square.
    pub const EPS: f64 = 1e-6;

    /// Declares a `weight` of ones.
    ///
    /// # Errors
    /// The weight name is already declared.
    pub fn new(scope: &Scope, width: i64) -> Result<Self, DiffusionError> {
        Ok(Self {
            weight: scope.var("weight", &[width], Init::Ones)?,
        })
    }
}

impl Norm for RmsNorm {
    fn modulated(
        &self,
        x: &Tensor,
        shift: &Tensor,
        scale: &Tensor,
    ) -> Result<Tensor, DiffusionError> {
        let norm = ops::Norm::Rms(&self.weight);
        Ok(ops::norm_modulate(x, norm, shift, scale, Self::EPS)?)
    }
}

/// Layer norm with a weight and a bias, which queries and keys get over the width of a head (`qk_norm` in timm).
#[derive(Debug)]
pub struct AffineLayerNorm {
    /// `[width]`.
    pub weight: Tensor,
    /// `[width]`.
    pub bias: Tensor,
}

impl AffineLayerNorm {
    /// Added to the variance.
    pub const EPS: f64 = 1e-5;

    /// Declares a `weight` of ones and a `bias` of zeros.
    ///
    /// # Errors
    /// A weight name is already declared.
    pub fn new(scope: &Scope, width: i64) -> Result<Self, DiffusionError> {
        Ok(Self {
            weight: scope.var("weight", &[width], Init::Ones)?,
            bias: scope.var("bias", &[width], Init::Zeros)?,
        })
    }

    /// Normalises `x` `[..., width]`.
    ///
    /// # Errors
    /// The last dimension of `x` is not `width`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let (weight, bias) = (&self.weight, &self.bias);
        Ok(x.f_layer_norm(weight.size(), Some(weight), Some(bias), Self::EPS, true)?)
    }
}
