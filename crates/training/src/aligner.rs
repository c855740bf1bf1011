//! Hidden tokens against the encoders' tokens.

use alignment::{AlignmentLoss, SpatialNorm};
use tch::{Kind, Tensor};

use crate::{Config, EncoderShape, TrainError};

/// What a run aligns its hidden tokens with, and how.
#[derive(Debug)]
pub(crate) struct Aligner {
    loss: AlignmentLoss,
    norm: SpatialNorm,
    encoders: Vec<EncoderShape>,
    /// Rows and columns of the hidden tokens.
    grid: (i64, i64),
}

/// The alignment loss of some hidden tokens, scalars.
pub(crate) struct Aligned {
    /// The losses with their coefficients, summed.
    pub(crate) weighted: Tensor,
    /// The losses without, averaged.
    pub(crate) mean: Tensor,
}

impl Aligner {
    pub(crate) fn new(
        config: &Config,
        encoders: &[EncoderShape],
        grid: (i64, i64),
    ) -> Result<Self, TrainError> {
        Ok(Self {
            loss: AlignmentLoss::new(&config.alignment.losses)?.with_fused(config.train.fused),
            norm: config.alignment.spatial_norm,
            encoders: encoders.to_vec(),
            grid,
        })
    }

    /// Each encoder's tokens, `[B, T, D]`, on the grid of the hidden tokens.
    pub(crate) fn pooled(&self, tokens: &[Tensor]) -> Result<Vec<Tensor>, TrainError> {
        tch::no_grad(|| {
            tokens
                .iter()
                .zip(&self.encoders)
                .map(|(tokens, encoder)| pool(tokens, encoder.grid, self.grid))
                .collect()
        })
    }

    /// Compares hidden tokens, projected for each encoder, with [`Aligner::pooled`] tokens, which are
    /// normalised; `None` without alignment.
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

/// Tokens `[B, T, D]` of one grid, averaged over blocks to a coarser one.
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
