use diffusion::repa_e::LatentNorm;
use tch::Tensor;
use torch_ext::{Params, TorchError, optim};

use crate::TrainError;

/// A moving average of a model: of its weights, and of REPA-E's statistics of latents.
#[derive(Debug)]
pub struct Average {
    decay: f64,
    /// In the order of the trainable weights.
    weights: Vec<Tensor>,
    /// Running mean and variance of latents, average and source.
    statistics: (Vec<Tensor>, Vec<Tensor>),
    /// The number of batches that they have seen, likewise.
    count: Option<(Tensor, Tensor)>,
}

impl Average {
    /// `target` is what follows `params`; both are of models of one configuration.
    pub fn new(target: &Params, params: &Params, decay: f64) -> Self {
        let statistics = |params: &Params| -> Vec<Tensor> {
            let names = LatentNorm::AVERAGED.iter();
            names.filter_map(|name| params.get(name)).collect()
        };
        Self {
            decay,
            weights: target.trainable(),
            statistics: (statistics(target), statistics(params)),
            count: target
                .get(LatentNorm::COUNT)
                .zip(params.get(LatentNorm::COUNT)),
        }
    }

    /// Share of itself that it keeps a step.
    pub(crate) fn decay(&self) -> f64 {
        self.decay
    }

    /// Refuses to follow a model with another number of trainable weights.
    pub(crate) fn check_len(&self, weights: usize) -> Result<(), TrainError> {
        if self.weights.len() == weights {
            return Ok(());
        }
        Err(TorchError::Length {
            what: "moving average",
            left: self.weights.len(),
            right: weights,
        }
        .into())
    }

    /// The average of trainable weight `index`.
    pub(crate) fn weight(&self, index: usize) -> &Tensor {
        &self.weights[index]
    }

    /// Moves the averages of some trainable weights towards them.
    pub(crate) fn follow(&self, weights: &[Tensor], indices: &[usize]) -> Result<(), TrainError> {
        let pick = |list: &[Tensor]| -> Vec<Tensor> {
            indices.iter().map(|&i| list[i].shallow_clone()).collect()
        };
        Ok(optim::ema_(
            &pick(&self.weights),
            &pick(weights),
            self.decay,
        )?)
    }

    /// Moves the averages of statistics towards them; the number of batches is copied (`update_ema` of
    /// REPA-E upstream).
    pub(crate) fn follow_statistics(&self) -> Result<(), TrainError> {
        let (averages, sources) = &self.statistics;
        optim::ema_(averages, sources, self.decay)?;
        if let Some((target, source)) = &self.count {
            optim::copy_(&[target.shallow_clone()], &[source.shallow_clone()])?;
        }
        Ok(())
    }
}
