//! The alignment loss of a run: hidden tokens compared with the encoders' tokens.

use alignment::{AlignmentLoss, SpatialNorm};
use tch::{Kind, Tensor};

use crate::{Config, EncoderShape, TrainError};

/// Computes a run's alignment loss.
#[derive(Debug)]
pub(crate) struct Aligner {
    loss: AlignmentLoss,
    norm: SpatialNorm,
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
    pub(crate) fn new(
        config: &Config,
        encoders: &[EncoderShape],
        grid: (i64, i64),
    ) -> Result<Self, TrainError> {
        Ok(Self {
            loss: AlignmentLoss::new(&config.alignment.losses)?,
            norm: config.alignment.spatial_norm,
            encoders: encoders.to_vec(),
            grid,
        })
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

    /// Normalises the tokens that [`Aligner::pooled`] returned, and compares them with the hidden tokens
    /// projected for each encoder. `None` without alignment.
    pub(crate) fn compare(
        &self,
        tokens: &[Tensor],
        projected: &[Tensor],
    ) -> Result<Option<Aligned>, TrainError> {
        if projected.is_empty() {
            return Ok(None);
        }
        let found = self.loss.forward_tokens(
            &self.norm,
            &tokens.iter().collect::<Vec<_>>(),
            &projected.iter().collect::<Vec<_>>(),
        )?;
        let terms: Vec<&Tensor> = found.terms.iter().map(|term| &term.value).collect();
        Ok(Some(Aligned {
            mean: Tensor::f_stack(&terms, 0)?.f_mean(Kind::Float)?,
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
