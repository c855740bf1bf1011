//! The update of the weights: clipping, AdamW and moving averages.
//!
//! The kernels work in one sweep over the weights. A first pass reads the gradients to compute their norm. The sweep
//! then reads and writes each element once per step. It scales the gradients as it reads them, and does not write them
//! back.

mod cpu;
mod cuda;
mod kernel;
mod operands;
#[cfg(test)]
mod tests;

use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::optim;

use crate::composed::is_composed;

pub use self::cuda::PointerTable;
pub use self::operands::{AVERAGES, Operands, Update};

/// Clips the gradients of `weights`, and updates weights, moments, moving averages and copies in place. Returns the
/// norm of all gradients before clipping, a float32 scalar on the device of the weights.
///
/// With `c = min(1, max_norm / (norm + 1e-6))` and `g = c * gradient`, in step `t`:
///
/// ```text
/// m = beta1 m + (1 - beta1) g             v = beta2 v + (1 - beta2) g^2
/// w = w (1 - lr weight_decay) - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
/// average = decay average + (1 - decay) w
/// ```
///
/// A kernel runs on the CPU and on CUDA for contiguous float32 tensors, contiguous bfloat16 copies, gradients in the
/// dtypes of [`Operands::gradient`] and at most [`AVERAGES`] averages; on CUDA if it can be compiled. It reads and
/// writes each element once after a pass over the gradients, which it does not change. Otherwise libtorch's operators
/// run, which scale gradients that have the dtype of their weights in place. The caller keeps `table` from step to
/// step; it is used on CUDA only.
///
/// # Errors
/// Tensors do not fit each other, or the number of averages is not that of [`Update::decays`]; two operands share
/// memory; memory is exhausted.
pub fn update_weights(
    weights: &[Operands<'_>],
    update: &Update<'_>,
    table: &PointerTable,
) -> Result<Tensor, TorchError> {
    for operands in weights {
        if operands.averages.len() != update.decays.len() {
            return Err(TorchError::Length {
                what: "moving averages",
                left: operands.averages.len(),
                right: update.decays.len(),
            });
        }
    }
    if !is_composed()
        && let Some(norm) = kernel(weights, update, table)?
    {
        return Ok(norm);
    }
    compose(weights, update)
}

/// The update with libtorch's operators, each of which reads all weights.
fn compose(weights: &[Operands<'_>], update: &Update<'_>) -> Result<Tensor, TorchError> {
    let Some(first) = weights.first() else {
        return Ok(Tensor::f_zeros([], (Kind::Float, Device::Cpu))?);
    };
    let device = first.weight.device();
    let all =
        |pick: fn(&Operands<'_>) -> Tensor| -> Vec<Tensor> { weights.iter().map(pick).collect() };
    let params = all(|operands| operands.weight.shallow_clone());
    let gradients = weights
        .iter()
        .map(|operands| operands.gradient.f_to_kind(operands.weight.kind()))
        .collect::<Result<Vec<_>, _>>()?;
    let norm = optim::grad_norm(&gradients)?;
    optim::clip_grads_(&gradients, &norm, update.max_norm)?;
    let count = Tensor::f_full([], update.step as f64, (Kind::Float, device))?;
    let counts: Vec<Tensor> = params.iter().map(|_| count.shallow_clone()).collect();
    optim::fused_adamw_(
        &params,
        &gradients,
        &all(|operands| operands.exp_avg.shallow_clone()),
        &all(|operands| operands.exp_avg_sq.shallow_clone()),
        &counts,
        &update.settings,
    )?;
    for (index, &decay) in update.decays.iter().enumerate() {
        let averages: Vec<Tensor> = weights
            .iter()
            .map(|operands| operands.averages[index].shallow_clone())
            .collect();
        optim::ema_(&averages, &params, decay)?;
    }
    let copied = weights.iter().filter_map(|operands| {
        let copy = operands.copy?;
        Some((copy.shallow_clone(), operands.weight.shallow_clone()))
    });
    let (copies, masters): (Vec<_>, Vec<_>) = copied.unzip();
    optim::copy_(&copies, &masters)?;
    Ok(norm)
}

/// The kernel for operands with as many averages as decays. It changes nothing if it returns `None` or an error of
/// operands that share memory.
fn kernel(
    weights: &[Operands<'_>],
    update: &Update<'_>,
    table: &PointerTable,
) -> Result<Option<Tensor>, TorchError> {
    let Some(first) = weights.iter().find(|operands| operands.weight.numel() > 0) else {
        return Ok(None);
    };
    let device = first.weight.device();
    for operands in weights {
        if !fits(operands, device)? {
            return Ok(None);
        }
    }
    match (device, update.decays.len()) {
        (Device::Cpu, 0) => cpu::sweep::<0>(weights, update).map(Some),
        (Device::Cpu, 1) => cpu::sweep::<1>(weights, update).map(Some),
        (Device::Cpu, AVERAGES) => cpu::sweep::<AVERAGES>(weights, update).map(Some),
        // SAFETY: `fits` has checked the operands of all weights.
        (Device::Cuda(_), 0..=AVERAGES) => unsafe { table.sweep(device, weights, update) },
        _ => Ok(None),
    }
}

fn fits(operands: &Operands<'_>, device: Device) -> Result<bool, TorchError> {
    let weight = operands.weight;
    let same = |tensor: &Tensor, kind| -> Result<bool, TorchError> {
        Ok(tensor.f_kind()? == kind
            && tensor.device() == device
            && !tensor.is_sparse()
            && !tensor.is_mkldnn()
            && tensor.size() == weight.size())
    };
    let narrow = match operands.copy {
        Some(_) => Kind::BFloat16,
        None => Kind::Float,
    };
    let mut fit = same(&operands.gradient, narrow)?;
    let state = [weight, operands.exp_avg, operands.exp_avg_sq];
    for tensor in state.iter().chain(&operands.averages) {
        fit &= same(tensor, Kind::Float)? && tensor.is_contiguous();
    }
    if let Some(copy) = operands.copy {
        fit &= same(copy, narrow)? && copy.is_contiguous();
    }
    Ok(fit)
}
