//! Settings and results that the forms of the loss share.

use tch::Tensor;
use torch_ext::autograd;

/// The settings of a spatial z-score, `(x - alpha * mean) / (std + eps)`, with the mean and the unbiased standard
/// deviation over the tokens of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ZScore {
    /// Share of the mean that is subtracted.
    pub alpha: f64,
    /// Added to the standard deviation.
    pub eps: f64,
}

/// Lower bound of the length by which a token is divided (`eps` of `F.normalize`).
pub(super) const NORM_EPS: f64 = 1e-12;

/// The loss, a scalar, and the gradient of the projected tokens, if it is needed.
pub(super) type LossAndGradient = autograd::Result<(Tensor, Option<Tensor>)>;
