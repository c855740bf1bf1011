//! One model, trained by several processes on a batch that they share.

use tch::{Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::distributed::{ProcessGroup, Reduce, Reducer, ReducerSettings, World};

use crate::{TrainConfig, TrainError};

/// The rows of a batch that each process takes, and the gradients that all of them average.
#[derive(Debug)]
pub(crate) struct DataParallel {
    /// Made in the first step, from its loss.
    reducer: Option<Reducer>,
    /// The tensors that receive gradients.
    leaves: Vec<Tensor>,
    group: ProcessGroup,
}

impl DataParallel {
    pub(crate) fn new(group: ProcessGroup, leaves: Vec<Tensor>) -> Self {
        Self {
            reducer: None,
            leaves,
            group,
        }
    }

    /// Adds the gradients of `loss`, of this process's rows of a part of the batch. After the `last` part, the gradients
    /// are averaged over the processes.
    pub(crate) fn backward(&mut self, loss: &Tensor, last: bool) -> Result<(), TorchError> {
        let reducer = match self.reducer.take() {
            Some(reducer) => reducer,
            None => {
                // The gradients of copies in bfloat16 are widened for the sum.
                let is_narrow = self.leaves.iter().any(|leaf| leaf.kind() != Kind::Float);
                let settings = ReducerSettings {
                    dtype: is_narrow.then_some(Kind::Float),
                    ..ReducerSettings::default()
                };
                Reducer::new(&self.leaves, loss, &self.group, settings)?
            }
        };
        let reducer = self.reducer.insert(reducer);
        match last {
            true => reducer.backward(loss),
            false => Ok(loss.f_backward()?),
        }
    }

    /// Returns the mean of `figures` over the processes.
    pub(crate) fn mean(&self, figures: &Tensor) -> Result<Tensor, TorchError> {
        let mean = figures.f_div_scalar(self.group.world().size as f64)?;
        self.group.all_reduce_(&mean, Reduce::Sum)?;
        Ok(mean)
    }
}

/// Returns the rows of the global batch that the process `world.rank` takes: an equal share of each of
/// `train.accumulation` parts, in order.
///
/// # Errors
/// [`TrainError::Processes`] if the batch cannot be divided.
pub fn rows(train: &TrainConfig, world: &World) -> Result<Vec<usize>, TrainError> {
    let (batch, parts, size) = (train.batch_size, train.accumulation, world.size);
    let shares = parts * size;
    if shares == 0 || !batch.is_multiple_of(shares) {
        return Err(TrainError::Processes {
            batch_size: batch,
            accumulation: parts,
            processes: size,
        });
    }
    let share = batch / shares;
    let starts = (0..parts).map(|part| (part * size + world.rank) * share);
    Ok(starts.flat_map(|start| start..start + share).collect())
}
