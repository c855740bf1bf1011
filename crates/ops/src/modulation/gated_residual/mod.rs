//! Gated residuals.

mod cpu;
mod cuda;
mod function;
mod kernel;

use tch::Tensor;
use torch_ext::{TorchError, autograd};

use super::form::choose;
use crate::composed::is_composed;

pub(super) use self::function::{FusedGate, Passes};

/// `x + gate y` for `x` and `y` `[B, T, D]` and `gate` `[B, 1, D]`, in the dtype of `x`.
///
/// One pass forward and one backward run for the dtypes and devices of [`norm_modulate`](crate::norm_modulate), with `gate` and `y` in the
/// place of `shift` and `scale`. Otherwise libtorch's operators run.
///
/// # Errors
/// The shapes do not fit each other; memory is exhausted.
pub fn gated_residual(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor, TorchError> {
    if !is_composed()
        && let Some(z) = kernel(x, gate, y)?
    {
        return Ok(z);
    }
    compose(x, gate, y)
}

pub(super) fn compose(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor, TorchError> {
    Ok(x.f_addcmul(gate, y)?)
}

pub(super) fn kernel(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Option<Tensor>, TorchError> {
    if y.size() != x.size() || y.kind() != gate.kind() || y.device() != x.device() {
        return Ok(None);
    }
    let Some(passes) = choose::<Passes>(x, &[gate])? else {
        return Ok(None);
    };
    Ok(Some(
        autograd::apply(FusedGate { passes }, &[x, gate, y])?.remove(0),
    ))
}
