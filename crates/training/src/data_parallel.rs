//! One model, trained by several processes on a batch that they share.

use data::Cursor;
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::distributed::{ProcessGroup, Reducer, ReducerSettings, SharedGroup, World};

use crate::{Checkpoint, ReduceDtype, TrainConfig, TrainError};

/// A network whose gradients are averaged by themselves: its backward pass has a loss of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// Denoiser and heads.
    Denoiser,
    /// REPA-E's autoencoder.
    Autoencoder,
    /// REPA-E's discriminator.
    Discriminator,
}

/// The processes that share a batch, and the gradients that all of them average.
#[derive(Debug)]
pub(crate) struct DataParallel {
    reductions: Vec<Reduction>,
    group: SharedGroup,
    asks_to_stop: bool,
}

/// The reduction of the gradients of one network.
#[derive(Debug)]
struct Reduction {
    network: Network,
    /// Made in the first step, from its loss.
    reducer: Option<Reducer>,
    /// The tensors that receive gradients.
    leaves: Vec<Tensor>,
    /// Dtype of the reduction, if it is not that of the gradients.
    dtype: Option<Kind>,
}

impl DataParallel {
    /// Gradients of the leaves of each network are reduced in `dtype`.
    pub(crate) fn new(
        group: ProcessGroup,
        networks: Vec<(Network, Vec<Tensor>)>,
        dtype: ReduceDtype,
    ) -> Self {
        let dtype = match dtype {
            // The gradients of copies in bfloat16 are widened for the sum.
            ReduceDtype::Fp32 => Kind::Float,
            ReduceDtype::Bf16 => Kind::BFloat16,
        };
        let reductions = networks.into_iter().map(|(network, leaves)| Reduction {
            network,
            reducer: None,
            dtype: leaves
                .iter()
                .any(|leaf| leaf.kind() != dtype)
                .then_some(dtype),
            leaves,
        });
        Self {
            reductions: reductions.collect(),
            group: SharedGroup::new(group),
            asks_to_stop: false,
        }
    }

    /// The group.
    pub(crate) fn group(&self) -> &SharedGroup {
        &self.group
    }

    /// Adds the gradients of `loss`, of this process's rows of a part of the batch. After the `last` part, the gradients
    /// are averaged over the processes.
    pub(crate) fn backward(
        &mut self,
        network: Network,
        loss: &Tensor,
        last: bool,
    ) -> Result<(), TorchError> {
        let mut reductions = self.reductions.iter_mut();
        let Some(reduction) = reductions.find(|reduction| reduction.network == network) else {
            return Ok(loss.f_backward()?);
        };
        let reducer = match reduction.reducer.take() {
            Some(reducer) => reducer,
            None => {
                let settings = ReducerSettings {
                    dtype: reduction.dtype,
                    ..ReducerSettings::default()
                };
                Reducer::new(&reduction.leaves, loss, &self.group.lock(), settings)?
            }
        };
        let reducer = reduction.reducer.insert(reducer);
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
        tch::no_grad(|| self.group.mean(&sum))
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
