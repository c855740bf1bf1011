//! The weights of denoiser and heads.

use alignment::{AlignmentLoss, Heads};
use data::seed;
use diffusion::Denoiser;
use tch::Tensor;
use torch_ext::{Params, Scope};

use crate::{Config, Inputs, Objective, TrainError};

/// The weights of denoiser and heads.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) params: Params,
    pub(crate) heads: Heads,
}

impl Weights {
    /// Declares the weights of `network` and of the heads on its hidden tokens.
    pub(crate) fn declare<N>(
        config: &Config,
        inputs: &Inputs,
        network: impl FnOnce(&Scope) -> Result<N, TrainError>,
        denoiser: impl FnOnce(&N) -> &dyn Denoiser,
    ) -> Result<(Self, N), TrainError> {
        let seed = seed::derive(config.train.seed, "weights", &[]);
        let params = Params::new(inputs.device, seed)?;
        let network = network(&params.root())?;
        let denoiser = denoiser(&network);
        let (rows, columns) = denoiser.dimensions().token_grid;
        for encoder in &inputs.encoders {
            let pools = config.alignment.pool_tokens
                && encoder.grid.0 % rows == 0
                && encoder.grid.1 % columns == 0;
            if encoder.grid != (rows, columns) && !pools {
                return Err(TrainError::TokenGrid {
                    encoder: encoder.name.clone(),
                    found: encoder.grid,
                    model: config.model.name.clone(),
                    expected: (rows, columns),
                });
            }
        }
        let encoders = inputs.encoders.iter();
        let widths: Vec<i64> = encoders.map(|encoder| encoder.width).collect();
        let loss = alignment_loss(config, inputs)?;
        let width = denoiser.dimensions().hidden_width;
        let heads = Heads::new(&params.root(), loss.projections(), width, &widths)?;
        Ok((Self { params, heads }, network))
    }

    /// Makes these weights the start of a moving average of `trained`.
    pub(crate) fn start_at(&self, trained: &Self) -> Result<(), TrainError> {
        for param in self.params.entries().iter() {
            let _frozen = param.tensor.f_set_requires_grad(false)?;
        }
        self.params.load(&trained.params.state_dict())?;
        Ok(())
    }
}

/// Returns the alignment loss of a run.
pub(crate) fn alignment_loss(
    config: &Config,
    inputs: &Inputs,
) -> Result<AlignmentLoss, TrainError> {
    let depth = config.model.alignment_depth()?;
    let terms = config.alignment.terms(inputs.encoders.len(), depth);
    Ok(AlignmentLoss::new(terms)?)
}

/// Returns the number of classes of the network that `weights` belong to, without the null class.
pub(crate) fn num_classes(
    config: &Config,
    weights: &[(String, Tensor)],
) -> Result<i64, TrainError> {
    const TABLE: &str = "y_embedder.embedding_table.weight";
    let rows = weights
        .iter()
        .find(|(name, _)| name == TABLE)
        .and_then(|(_, tensor)| tensor.size().first().copied())
        .ok_or(TrainError::NoWeight(TABLE))?;
    // JiT always has an embedding for the null class.
    let null =
        matches!(config.objective, Objective::XPrediction(_)) || config.model.label_dropout > 0.0;
    Ok(rows - i64::from(null))
}
