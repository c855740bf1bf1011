//! The cosine loss of REPA.

use tch::Tensor;

use crate::tokens;
use crate::{AlignmentError, SpatialNorm, TokenLoss};

/// Lower bound of the length by which a token is divided (`eps` of `F.normalize`).
const NORM_EPS: f64 = 1e-12;

/// The negative cosine of each pair of tokens, averaged over samples and tokens
/// (`CosineProjectionLoss` upstream).
///
/// Tokens are divided by `max(|v|, 1e-12)`. For a token shorter than 1e-12, no gradient flows
/// through its length, and the gradient through its direction is large. A zero token has cosine 0.
/// Each tensor is normalised in its own dtype; the product has the wider of the two dtypes.
#[derive(Debug, Clone, Copy, Default)]
pub struct CosineLoss;

impl CosineLoss {
    /// Returns the cosine of each pair of tokens, `[B, T]`, for `target` and `projected` `[B, T, D]`.
    ///
    /// # Errors
    /// The shapes differ, or are not three-dimensional.
    pub fn similarity(
        &self,
        target: &Tensor,
        projected: &Tensor,
    ) -> Result<Tensor, AlignmentError> {
        tokens::pair(target, projected)?;
        let product = unit(target)?.f_mul(&unit(projected)?)?;
        Ok(product.f_sum_dim_intlist(-1, false, None)?)
    }
}

impl TokenLoss for CosineLoss {
    fn name(&self) -> &'static str {
        "cosine"
    }

    fn forward(&self, target: &Tensor, projected: &Tensor) -> Result<Tensor, AlignmentError> {
        let cosine = self.similarity(target, projected)?;
        Ok(cosine.f_mean(None)?.f_neg()?)
    }

    fn fused(
        &self,
        norm: &SpatialNorm,
        tokens: &Tensor,
        projected: &Tensor,
        expected_grad: f64,
    ) -> Result<Option<Tensor>, AlignmentError> {
        norm.validate()?;
        let (_, count, _) = tokens::pair(tokens, projected)?;
        let norm = match *norm {
            SpatialNorm::None => None,
            SpatialNorm::ZScore { .. } if count < 2 => {
                return Err(AlignmentError::TooFewTokens(count));
            }
            SpatialNorm::ZScore { alpha, eps } => Some(ops::ZScore { alpha, eps }),
        };
        Ok(ops::cosine_loss(norm, tokens, projected, expected_grad)?)
    }
}

/// Scales tokens to length 1 along the last dimension.
fn unit(tokens: &Tensor) -> Result<Tensor, AlignmentError> {
    let length = tokens
        .f_norm_scalaropt_dim(2.0, -1, true)?
        .f_clamp_min(NORM_EPS)?;
    Ok(tokens.f_div(&length)?)
}
