//! Spatial normalisation of an encoder's tokens.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::AlignmentError;
use crate::tokens;

/// Normalisation of an encoder's tokens over space, for each sample and channel (iREPA, section 4;
/// `spatial_zscore` upstream).
///
/// In TOML: `{ method = "none" }` or `{ method = "zscore", alpha = 0.6 }`.
///
/// ```
/// use alignment::SpatialNorm;
/// use tch::{Device, Kind, Tensor};
///
/// # fn main() -> Result<(), alignment::AlignmentError> {
/// let tokens = Tensor::randn([2, 16, 8], (Kind::Float, Device::Cpu)) + 5.0;
/// let norm = SpatialNorm::ZScore { alpha: 1.0, eps: 1e-6 };
/// let normalised = norm.forward(&tokens)?;
/// assert_eq!(normalised.size(), [2, 16, 8]);
/// // With alpha 1 the mean over the tokens becomes 0.
/// let mean = normalised.mean_dim(1, false, None);
/// assert!(mean.abs().max().double_value(&[]) < 1e-5);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase", from = "StrictSpatialNorm")]
pub enum SpatialNorm {
    /// Leaves the tokens unchanged (REPA).
    None,
    /// `(x - alpha * mean) / (std + eps)`, with the mean and unbiased standard deviation over the
    /// tokens.
    ZScore {
        /// Share of the mean that is subtracted; default 0.6, the paper's value for SiT (0.8 for
        /// JiT).
        alpha: f64,
        /// Added to the standard deviation, so that constant channels stay finite; default 1e-6.
        eps: f64,
    },
}

/// [`SpatialNorm`] for deserialisation: serde refuses unknown keys of `{}` variants, but not of unit
/// variants.
#[derive(Deserialize)]
#[serde(tag = "method", rename_all = "lowercase", deny_unknown_fields)]
enum StrictSpatialNorm {
    None {},
    ZScore {
        #[serde(default = "default_alpha")]
        alpha: f64,
        #[serde(default = "default_eps")]
        eps: f64,
    },
}

impl From<StrictSpatialNorm> for SpatialNorm {
    fn from(norm: StrictSpatialNorm) -> Self {
        match norm {
            StrictSpatialNorm::None {} => Self::None,
            StrictSpatialNorm::ZScore { alpha, eps } => Self::ZScore { alpha, eps },
        }
    }
}

fn default_alpha() -> f64 {
    0.6
}

fn default_eps() -> f64 {
    1e-6
}

impl Default for SpatialNorm {
    /// The paper's setting for SiT: z-score with alpha 0.6 and eps 1e-6.
    fn default() -> Self {
        Self::ZScore {
            alpha: default_alpha(),
            eps: default_eps(),
        }
    }
}

impl SpatialNorm {
    /// Checks the settings, so that a wrong configuration is refused before training starts.
    ///
    /// # Errors
    /// `alpha` is not finite, or `eps` is not positive.
    pub fn validate(&self) -> Result<(), AlignmentError> {
        let Self::ZScore { alpha, eps } = *self else {
            return Ok(());
        };
        if !alpha.is_finite() {
            return Err(AlignmentError::Setting {
                name: "alpha",
                found: alpha,
                allowed: "a finite number, usually between 0 and 1",
            });
        }
        if !(eps.is_finite() && eps > 0.0) {
            return Err(AlignmentError::Setting {
                name: "eps",
                found: eps,
                allowed: "a positive number",
            });
        }
        Ok(())
    }

    /// The z-score for tokens of this shape, or `None` for [`SpatialNorm::None`].
    ///
    /// # Errors
    /// As [`SpatialNorm::forward`].
    pub(crate) fn zscore_for(
        &self,
        tokens: &Tensor,
    ) -> Result<Option<ops::ZScore>, AlignmentError> {
        self.validate()?;
        match *self {
            Self::None => Ok(None),
            Self::ZScore { alpha, eps } => {
                check_count(tokens)?;
                Ok(Some(ops::ZScore { alpha, eps }))
            }
        }
    }

    /// Normalises `tokens` `[B, T, D]`. The result has the same shape, dtype and device. It is
    /// computed in the tokens' own dtype, as upstream does.
    ///
    /// # Errors
    /// `tokens` is not three-dimensional; [`SpatialNorm::validate`] refuses the settings; a z-score
    /// has fewer than two tokens, where upstream returns NaN.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor, AlignmentError> {
        tokens::sizes("encoder tokens", tokens)?;
        match self.zscore_for(tokens)? {
            None => Ok(tokens.shallow_clone()),
            Some(zscore) => Ok(ops::spatial_zscore(tokens, zscore)?),
        }
    }
}

/// Returns the mean and the unbiased standard deviation of `tokens` `[B, T, D]` over the tokens,
/// each `[B, 1, D]`.
///
/// # Errors
/// `tokens` is not three-dimensional, or has fewer than two tokens.
pub fn token_statistics(tokens: &Tensor) -> Result<(Tensor, Tensor), AlignmentError> {
    check_count(tokens)?;
    Ok(ops::token_statistics(tokens)?)
}

/// Checks that `tokens` `[B, T, D]` have a standard deviation over the tokens.
fn check_count(tokens: &Tensor) -> Result<(), AlignmentError> {
    match tokens::sizes("encoder tokens", tokens)? {
        (_, count, _) if count < 2 => Err(AlignmentError::TooFewTokens(count)),
        _ => Ok(()),
    }
}
