//! The paper's alignment loss, without a head.

use alignment::{
    AlignmentError, AlignmentLoss, AlignmentOutput, HeadConfig, LossKind, Source, SpatialNorm, Term,
};
use tch::Tensor;

/// The cosine loss of one encoder, with coefficient 1.
#[derive(Debug)]
pub struct CosineAlignment(AlignmentLoss);

impl CosineAlignment {
    /// The loss after `head`, of tokens that `norm` normalises.
    ///
    /// # Errors
    /// As [`AlignmentLoss::new`].
    pub fn new(norm: SpatialNorm, head: HeadConfig) -> Result<Self, AlignmentError> {
        let term = Term {
            source: Source::Encoder(0),
            depth: 4,
            head,
            norm,
            loss: LossKind::Cosine.build(),
            coefficient: 1.0,
        };
        Ok(Self(AlignmentLoss::new(vec![term])?))
    }

    /// The loss with its terms, to build the heads.
    pub fn terms(&self) -> &AlignmentLoss {
        &self.0
    }

    /// Compares an encoder's tokens with projected tokens, `[B, T, D]` each.
    ///
    /// # Errors
    /// As [`AlignmentLoss::forward`].
    pub fn forward(
        &self,
        tokens: &Tensor,
        projected: &Tensor,
    ) -> Result<AlignmentOutput, AlignmentError> {
        self.0.forward(&[tokens], &[projected], &[projected])
    }
}
