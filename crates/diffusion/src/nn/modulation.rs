//! Modulation of tokens by a condition (adaLN-Zero, arXiv 2212.09748).

use tch::Tensor;
use torch_ext::{Init, Scope};

use super::linear::Linear;
use super::norm::Norm;
use crate::{DiffusionError, check};

/// The linear layer that maps a condition `[B, D]` to `N` shifts, scales and gates `[B, 1, D]`.
#[derive(Debug)]
pub struct Modulation<const N: usize> {
    /// From `D` to `N D`.
    pub linear: Linear,
    width: i64,
}

impl<const N: usize> Modulation<N> {
    /// Declares `adaLN_modulation.1` with weights of zero, so that an untrained block is the identity.
    ///
    /// # Errors
    /// A weight name is already declared.
    pub fn new(scope: &Scope, width: i64) -> Result<Self, DiffusionError> {
        let scope = scope.sub("adaLN_modulation").sub(1);
        let linear = Linear::new(&scope, width, N as i64 * width, Init::Zeros)?;
        Ok(Self { linear, width })
    }

    /// Maps the conditioning vector `c` `[B, D]`, after SiLU, to `N` tensors `[B, 1, D]`.
    ///
    /// # Errors
    /// The shape of `c` differs.
    pub fn forward(&self, c: &Tensor) -> Result<[Tensor; N], DiffusionError> {
        let parts = self.parts()(&self.linear.forward(c)?)?;
        check::array(parts.f_unbind(1)?, "a modulation")
    }

    /// Views a modulation `[B, N D]` as `[B, N, 1, D]`.
    pub(crate) fn parts(&self) -> impl Fn(&Tensor) -> Result<Tensor, DiffusionError> + use<N> {
        let width = self.width;
        move |parts| Ok(parts.f_view([-1, N as i64, 1, width])?)
    }
}

/// `x + gate y` for tokens `x` and `y` `[B, T, D]` and `gate` `[B, 1, D]`: the residual connection of a block.
///
/// # Errors
/// The shapes do not match.
pub fn gated_residual(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor, DiffusionError> {
    Ok(ops::gated_residual(x, gate, y)?)
}

/// Projects tokens to the pixels of their patches, after a modulated norm.
#[derive(Debug)]
pub struct FinalLayer<N> {
    /// The norm of the tokens.
    pub norm_final: N,
    /// From `D` to `patch * patch * C`.
    pub linear: Linear,
    /// Shift and scale.
    pub modulation: Modulation<2>,
}

impl<N: Norm> FinalLayer<N> {
    /// Declares the other weights, all of them zero, for tokens of `width` and `out_width = patch * patch * C`.
    ///
    /// # Errors
    /// A weight name is already declared.
    pub fn new(
        scope: &Scope,
        norm_final: N,
        width: i64,
        out_width: i64,
    ) -> Result<Self, DiffusionError> {
        Ok(Self {
            norm_final,
            linear: Linear::new(&scope.sub("linear"), width, out_width, Init::Zeros)?,
            modulation: Modulation::new(scope, width)?,
        })
    }

    /// Maps tokens `x` `[B, T, D]`, with the conditioning vector `c` `[B, D]` after SiLU, to
    /// `[B, T, patch * patch * C]`.
    ///
    /// # Errors
    /// The shapes do not match.
    pub fn forward(&self, x: &Tensor, c: &Tensor) -> Result<Tensor, DiffusionError> {
        let [shift, scale] = self.modulation.forward(c)?;
        self.linear
            .forward(&self.norm_final.modulated(x, &shift, &scale)?)
    }
}
