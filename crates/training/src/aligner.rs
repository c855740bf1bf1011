//! The alignment loss of a run: hidden tokens compared with the encoders' tokens.

use alignment::AlignmentLoss;
use tch::Tensor;

use crate::forward::Hidden;
use crate::{EncoderShape, TrainError};

/// Computes a run's alignment loss.
#[derive(Debug)]
pub(crate) struct Aligner {
    loss: AlignmentLoss,
    encoders: Vec<EncoderShape>,
    /// Rows and columns of the hidden tokens.
    grid: (i64, i64),
}

/// The alignment losses of hidden tokens, as scalars.
pub(crate) struct Aligned {
    /// Sum of the losses, weighted with their coefficients.
    pub(crate) weighted: Tensor,
    /// Mean of the losses without their coefficients.
    pub(crate) mean: Tensor,
}

impl Aligner {
    pub(crate) fn new(loss: AlignmentLoss, encoders: &[EncoderShape], grid: (i64, i64)) -> Self {
        Self {
            loss,
            encoders: encoders.to_vec(),
            grid,
        }
    }

    /// Pools each encoder's tokens, `[B, T, D]`, to the grid of the hidden tokens.
    pub(crate) fn pooled(&self, tokens: &[Tensor]) -> Result<Vec<Tensor>, TrainError> {
        tch::no_grad(|| {
            tokens
                .iter()
                .zip(&self.encoders)
                .map(|(tokens, encoder)| pool(tokens, encoder.grid, self.grid))
                .collect()
        })
    }

    /// Compares the tokens that [`Aligner::pooled`] returned with the hidden tokens. `None` without alignment.
    pub(crate) fn compare(
        &self,
        tokens: &[Tensor],
        hidden: &Hidden,
    ) -> Result<Option<Aligned>, TrainError> {
        if self.loss.terms().is_empty() {
            return Ok(None);
        }
        let found = self.loss.forward(
            &tokens.iter().collect::<Vec<_>>(),
            &hidden.tokens.iter().collect::<Vec<_>>(),
            &hidden.projected.iter().collect::<Vec<_>>(),
        )?;
        Ok(Some(Aligned {
            mean: found.mean()?,
            weighted: found.total,
        }))
    }
}

/// Averages tokens `[B, T, D]` over blocks, from the grid `from` to the coarser grid `to`.
fn pool(tokens: &Tensor, from: (i64, i64), to: (i64, i64)) -> Result<Tensor, TrainError> {
    if from == to {
        return Ok(tokens.shallow_clone());
    }
    let (batch, _, width) = tokens.size3()?;
    Ok(tokens
        .f_reshape([batch, from.0, from.1, width])?
        .f_permute([0, 3, 1, 2])?
        .f_adaptive_avg_pool2d([to.0, to.1])?
        .f_permute([0, 2, 3, 1])?
        .f_reshape([batch, to.0 * to.1, width])?)
}
