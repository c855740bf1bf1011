//! Moving averages of a model.

use diffusion::repa_e::LatentNorm;
use tch::Tensor;
use torch_ext::{Params, TorchError, optim};

use crate::TrainError;

/// A moving average of a model's weights, and of REPA-E's running statistics of latents.
#[derive(Debug)]
pub struct Average {
    decay: f64,
    /// The averages, in the order of the model's trainable weights.
    weights: Vec<Tensor>,
    /// Averages and sources of the running mean and variance of latents.
    statistics: (Vec<Tensor>, Vec<Tensor>),
    /// Target and source of the number of batches in the running statistics.
    count: Option<(Tensor, Tensor)>,
}

impl Average {
    /// Creates an average that stores in `target` the moving averages of `params`. Both belong to models
    /// of the same configuration.
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

    /// The share of the average that is kept in each step.
    pub(crate) fn decay(&self) -> f64 {
        self.decay
    }

    /// Checks that the model has as many trainable weights as the average.
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

    /// Returns the average of trainable weight `index`.
    pub(crate) fn weight(&self, index: usize) -> &Tensor {
        &self.weights[index]
    }

    /// Updates the averages of the trainable weights `indices`.
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

    /// Updates the averages of the running statistics, and copies the number of batches (`update_ema` of
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
