//! What an alignment loss sees.

use std::cell::OnceCell;
use std::fmt::Debug;

use tch::Tensor;

use crate::{AlignmentError, SpatialNorm, tokens};

/// A loss between the tokens of a source and those of a denoiser.
///
/// Implement it to add a loss: [`Term::loss`](crate::Term::loss) takes any. To select it in a configuration, add a
/// variant to [`LossKind`](crate::LossKind).
pub trait TokenLoss: Debug + Send {
    /// The loss's name in logs.
    fn name(&self) -> &'static str;

    /// Returns the loss as a scalar tensor, without the coefficient of its term; training lowers it. It is called
    /// outside autocast, and in a step that is recorded as a CUDA graph it must not wait for the device.
    ///
    /// # Errors
    /// Shapes that the loss cannot compare.
    fn forward(&self, tokens: &Tokens<'_>) -> Result<Tensor, AlignmentError>;
}

/// The tokens that a loss compares, of both sides: of the source as they are and normalised, of the denoiser as they
/// are and projected. Both sides have the same grid of `T` tokens.
#[derive(Debug)]
pub struct Tokens<'a> {
    source: &'a Tensor,
    norm: &'a SpatialNorm,
    hidden: &'a Tensor,
    projected: &'a Tensor,
    coefficient: f64,
    target: OnceCell<Tensor>,
}

impl<'a> Tokens<'a> {
    /// Tokens of a source `[B, T, D]` and the normalisation for them, and hidden tokens `[B, T, H]` with their
    /// projection `[B, T, D]`. Kernels compute the gradient in the forward pass, scaled by `coefficient`, the
    /// coefficient of the term; another incoming gradient is allowed and costs one more pass.
    ///
    /// # Errors
    /// The shapes of `source` and `projected` differ, or are not three-dimensional; `hidden` has another batch size or
    /// number of tokens.
    pub fn new(
        (source, norm): (&'a Tensor, &'a SpatialNorm),
        (hidden, projected): (&'a Tensor, &'a Tensor),
        coefficient: f64,
    ) -> Result<Self, AlignmentError> {
        let (batch, count, _) = tokens::pair(source, projected)?;
        let (hidden_batch, hidden_count, _) = tokens::sizes("hidden tokens", hidden)?;
        if (hidden_batch, hidden_count) != (batch, count) {
            return Err(AlignmentError::ShapeMismatch {
                target: source.size(),
                what: "hidden tokens",
                found: hidden.size(),
            });
        }
        Ok(Self {
            source,
            norm,
            hidden,
            projected,
            coefficient,
            target: OnceCell::new(),
        })
    }

    /// The source's tokens, `[B, T, D]`, in the dtype of the source.
    pub fn source(&self) -> &Tensor {
        self.source
    }

    /// The source's tokens after normalisation, `[B, T, D]`. They are float32, or float64 if the source is:
    /// upstream's trainer (the package accelerate) passes float32 to its loss.
    ///
    /// # Errors
    /// As [`SpatialNorm::forward`].
    pub fn target(&self) -> Result<&Tensor, AlignmentError> {
        if let Some(target) = self.target.get() {
            return Ok(target);
        }
        let target = self.norm.forward(&ops::widened(self.source)?)?;
        Ok(self.target.get_or_init(|| target))
    }

    /// The denoiser's hidden tokens, `[B, T, H]`, in the dtype of the denoiser.
    pub fn hidden(&self) -> &Tensor {
        self.hidden
    }

    /// The hidden tokens projected to the width of the source, `[B, T, D]`, float32 or float64.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn projected(&self) -> Result<Tensor, AlignmentError> {
        Ok(ops::widened(self.projected)?)
    }

    /// The negative mean cosine of targets and projected tokens, by one operation with the normalisation.
    pub(crate) fn cosine_loss(&self) -> Result<Tensor, AlignmentError> {
        let norm = self.norm.zscore_for(self.source)?;
        // The backward pass computes its scalars in float32.
        let expected_grad = f64::from(self.coefficient as f32);
        Ok(ops::cosine_loss(
            norm,
            self.source,
            self.projected,
            expected_grad,
        )?)
    }
}
