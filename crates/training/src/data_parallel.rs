//! One model, trained by several processes on a batch that they share.

use data::Cursor;
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::distributed::{ProcessGroup, Reduce, Reducer, ReducerSettings, World};

use crate::{Checkpoint, Config, Objective, ReduceDtype, TrainConfig, TrainError};

/// The rows of a batch that each process takes, and the gradients that all of them average.
#[derive(Debug)]
pub(crate) struct DataParallel {
    /// Made in the first step, from its loss.
    reducer: Option<Reducer>,
    /// The tensors that receive gradients.
    leaves: Vec<Tensor>,
    group: ProcessGroup,
    /// Dtype of the reduction.
    dtype: Option<Kind>,
    asks_to_stop: bool,
}

impl DataParallel {
    /// Gradients of `leaves` are reduced in `dtype`.
    pub(crate) fn new(group: ProcessGroup, leaves: Vec<Tensor>, dtype: ReduceDtype) -> Self {
        let dtype = match dtype {
            // The gradients of copies in bfloat16 are widened for the sum.
            ReduceDtype::Fp32 => Kind::Float,
            ReduceDtype::Bf16 => Kind::BFloat16,
        };
        Self {
            reducer: None,
            dtype: leaves
                .iter()
                .any(|leaf| leaf.kind() != dtype)
                .then_some(dtype),
            leaves,
            group,
            asks_to_stop: false,
        }
    }

    /// Adds the gradients of `loss`, of this process's rows of a part of the batch. After the `last` part, the gradients
    /// are averaged over the processes.
    pub(crate) fn backward(&mut self, loss: &Tensor, last: bool) -> Result<(), TorchError> {
        let reducer = match self.reducer.take() {
            Some(reducer) => reducer,
            None => {
                let settings = ReducerSettings {
                    dtype: self.dtype,
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

    /// Asks all processes to stop after the next step.
    pub(crate) fn ask_to_stop(&mut self) {
        self.asks_to_stop = true;
    }

    /// Returns the mean of `figures` over the processes, followed by the share of those that have asked to stop.
    pub(crate) fn mean(&self, figures: &Tensor) -> Result<Tensor, TorchError> {
        let asks = [f32::from(u8::from(self.asks_to_stop))];
        let asks = Tensor::f_from_slice(&asks)?.f_to_device(figures.device())?;
        let sum = Tensor::f_cat(&[figures, &asks], 0)?;
        let mean = sum.f_div_scalar(self.group.world().size as f64)?;
        self.group.all_reduce_(&mean, Reduce::Sum)?;
        Ok(mean)
    }
}

/// Replaces the tensors of a checkpoint by those of rank 0, and its step and position too. All processes pass one of the
/// same model.
pub(crate) fn share_state(
    state: &mut Checkpoint,
    group: &ProcessGroup,
    device: Device,
) -> Result<(), TrainError> {
    let Cursor {
        epoch,
        position,
        seen,
        skipped,
    } = state.cursor;
    // Whole numbers below 2^63, as in the manifest.
    let numbers = [state.step, epoch, position, seen, skipped].map(|number| number as i64);
    let numbers = Tensor::f_from_slice(&numbers)?.f_to_device(device)?;
    group.broadcast_(&numbers, 0)?;
    let numbers = Vec::<i64>::try_from(numbers.f_to_device(Device::Cpu)?)?;
    if let [step, epoch, position, seen, skipped] = numbers[..] {
        let number = |value: i64| u64::try_from(value).unwrap_or_default();
        state.step = number(step);
        state.cursor = Cursor {
            epoch: number(epoch),
            position: number(position),
            seen: number(seen),
            skipped: number(skipped),
        };
    }
    let parts = [
        Some(&mut state.model),
        Some(&mut state.ema),
        state.second_ema.as_mut(),
        Some(&mut state.optimizer),
        Some(&mut state.random),
    ];
    let parts = parts.into_iter().flatten().chain(state.others.values_mut());
    for (_, tensor) in parts.flatten() {
        let shared = tensor.f_detach()?.f_contiguous()?.f_to_device(device)?;
        group.broadcast_(&shared, 0)?;
        *tensor = shared.f_to_device(tensor.device())?;
    }
    Ok(())
}

/// Checks that the processes of `world` can train the model of a configuration together.
///
/// # Errors
/// [`TrainError::Processes`]; [`TrainError::JointProcesses`].
pub fn check_ranks(config: &Config, world: &World) -> Result<(), TrainError> {
    if matches!(config.objective, Objective::RepaE(_)) {
        return Err(TrainError::JointProcesses);
    }
    rows(&config.train, world).map(drop)
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
