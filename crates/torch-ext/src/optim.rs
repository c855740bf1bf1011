//! Updates of lists of tensors in one call, with few kernels.
//!
//! None of these functions records gradients.

use std::ptr;

use tch::Tensor;

use crate::TorchError;
use crate::ffi::{self, handles};

/// Settings of [`fused_adamw_`], named as in `torch.optim.AdamW`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the square root of the second moment.
    pub eps: f64,
}

fn same_length(what: &'static str, left: &[Tensor], right: &[Tensor]) -> Result<(), TorchError> {
    if left.len() == right.len() {
        Ok(())
    } else {
        Err(TorchError::Length {
            what,
            left: left.len(),
            right: right.len(),
        })
    }
}

/// One step of AdamW on every parameter (`torch.optim.AdamW(fused=True)`).
///
/// `steps` holds one float32 scalar per parameter, on the parameter's device: the number of this step,
/// counted from 1. The caller increments it.
///
/// # Errors
/// The lengths of the lists differ, or the tensors do not match in shape, dtype or device.
pub fn fused_adamw_(
    params: &[Tensor],
    grads: &[Tensor],
    exp_avgs: &[Tensor],
    exp_avg_sqs: &[Tensor],
    steps: &[Tensor],
    settings: &AdamW,
) -> Result<(), TorchError> {
    for list in [grads, exp_avgs, exp_avg_sqs, steps] {
        same_length("fused AdamW", params, list)?;
    }
    if params.is_empty() {
        return Ok(());
    }
    // SAFETY: the five lists have the passed length and live for the call.
    ffi::check(unsafe {
        ffi::te_fused_adamw_(
            handles(params).as_ptr(),
            handles(grads).as_ptr(),
            handles(exp_avgs).as_ptr(),
            handles(exp_avg_sqs).as_ptr(),
            handles(steps).as_ptr(),
            params.len(),
            settings.lr,
            settings.betas.0,
            settings.betas.1,
            settings.weight_decay,
            settings.eps,
        )
    })
}

/// `average <- decay * average + (1 - decay) * value` for every pair.
///
/// # Errors
/// The lengths of the lists differ, or pairs do not match.
pub fn ema_(averages: &[Tensor], values: &[Tensor], decay: f64) -> Result<(), TorchError> {
    same_length("EMA", averages, values)?;
    if averages.is_empty() {
        return Ok(());
    }
    // SAFETY: both lists have the passed length and live for the call.
    ffi::check(unsafe {
        ffi::te_ema_(
            handles(averages).as_ptr(),
            handles(values).as_ptr(),
            averages.len(),
            decay,
        )
    })
}

/// The 2-norm of all gradients together, a float scalar on their device.
///
/// # Errors
/// The list is empty, or the tensors are on several devices.
pub fn grad_norm(grads: &[Tensor]) -> Result<Tensor, TorchError> {
    let mut out = ptr::null_mut();
    // SAFETY: the list has the passed length and lives for the call; `out` is valid for writes.
    let status = unsafe { ffi::te_grad_norm(handles(grads).as_ptr(), grads.len(), &mut out) };
    ffi::take(status, out)
}

/// Scales every gradient by `min(1, max_norm / (norm + 1e-6))`, as `clip_grad_norm_` does,
/// without reading `norm` back from its device.
///
/// # Errors
/// The tensors are on several devices.
pub fn clip_grads_(grads: &[Tensor], norm: &Tensor, max_norm: f64) -> Result<(), TorchError> {
    if grads.is_empty() {
        return Ok(());
    }
    // SAFETY: list and norm live for the call.
    ffi::check(unsafe {
        ffi::te_clip_grads_(
            handles(grads).as_ptr(),
            grads.len(),
            norm.as_ptr(),
            max_norm,
        )
    })
}

/// Removes the gradients (`zero_grad(set_to_none=True)`).
///
/// # Errors
/// libtorch failed.
pub fn clear_grads(params: &[Tensor]) -> Result<(), TorchError> {
    // SAFETY: the list has the passed length and lives for the call.
    ffi::check(unsafe { ffi::te_clear_grads(handles(params).as_ptr(), params.len()) })
}

/// Copies every source into its target, across dtypes and devices.
///
/// # Errors
/// The lengths of the lists differ, or shapes do not match.
pub fn copy_(targets: &[Tensor], sources: &[Tensor]) -> Result<(), TorchError> {
    same_length("copy", targets, sources)?;
    // SAFETY: both lists have the passed length and live for the call.
    ffi::check(unsafe {
        ffi::te_copy_(
            handles(targets).as_ptr(),
            handles(sources).as_ptr(),
            targets.len(),
        )
    })
}
