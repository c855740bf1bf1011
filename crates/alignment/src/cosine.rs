//! The cosine loss of REPA.

use tch::Tensor;

use crate::token_loss::{TokenLoss, Tokens};
use crate::{AlignmentError, tokens};

/// The negative cosine of each pair of tokens, averaged over samples and tokens
/// (`CosineProjectionLoss` upstream).
///
/// Tokens are divided by `max(|v|, 1e-12)`. For a token shorter than 1e-12, no gradient flows
/// through its length, and the gradient through its direction is large. A zero token has cosine 0.
///
/// As a [`TokenLoss`] it compares in float32, and normalises and compares in one operation ([`ops::cosine_loss`]).
#[derive(Debug, Clone, Copy, Default)]
pub struct CosineLoss;

impl CosineLoss {
    /// Returns the cosine of each pair of tokens, `[B, T]`, for `target` and `projected` `[B, T, D]`. Each tensor is
    /// normalised in its own dtype; the product has the wider of the two dtypes.
    ///
    /// # Errors
    /// The shapes differ, or are not three-dimensional.
    pub fn similarity(
        &self,
        target: &Tensor,
        projected: &Tensor,
    ) -> Result<Tensor, AlignmentError> {
        tokens::pair(target, projected)?;
        Ok(ops::token_cosines(target, projected)?)
    }

    /// Returns the negative mean of [`CosineLoss::similarity`], a scalar.
    ///
    /// # Errors
    /// As [`CosineLoss::similarity`].
    pub fn compare(&self, target: &Tensor, projected: &Tensor) -> Result<Tensor, AlignmentError> {
        let cosine = self.similarity(target, projected)?;
        Ok(cosine.f_mean(None)?.f_neg()?)
    }
}

impl TokenLoss for CosineLoss {
    fn name(&self) -> &'static str {
        "cosine"
    }

    fn forward(&self, tokens: &Tokens<'_>) -> Result<Tensor, AlignmentError> {
        tokens.cosine_loss()
    }
}
