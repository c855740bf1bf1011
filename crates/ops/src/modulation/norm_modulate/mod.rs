//! Norm with shift and scale.

mod cpu;
mod cuda;
mod function;
mod kernel;

use tch::{Kind, Tensor};
use torch_ext::{TorchError, autograd};

use super::form::choose;
use crate::composed::is_composed;

pub(super) use self::function::{FusedNormModulate, Passes};

/// The norm of tokens before modulation.
#[derive(Debug, Clone, Copy)]
pub enum Norm<'w> {
    /// Layer norm without weights.
    Layer,
    /// RMS norm with weights `[D]`, float32.
    Rms(&'w Tensor),
}

/// `norm(x) (1 + scale) + shift` for tokens `x` `[B, T, D]`, with `shift` and `scale` `[B, 1, D]`. Layer norm is
/// `(x - mean) / sqrt(var + eps)`, RMS norm `x / sqrt(mean(x^2) + eps) * weight`, both over `D`.
///
/// One pass over the tokens runs for float32 tokens with `shift` and `scale` in float32 or bfloat16: on the CPU, and
/// on CUDA for tokens of at most 5,120 numbers if the kernels can be compiled. On the CPU it also runs for float64.
/// Its result has the dtype of `scale`: under autocast, the next linear layer would cast it to that dtype. Otherwise
/// libtorch's operators run, with their promotion of dtypes; the composed RMS norm computes in float32 and returns
/// the dtype of `x`. `shift` and `scale` may be slices of one tensor `[B, N D]`: the kernels read them in place.
///
/// # Errors
/// The shapes do not fit each other; memory is exhausted.
pub fn norm_modulate(
    x: &Tensor,
    norm: Norm<'_>,
    shift: &Tensor,
    scale: &Tensor,
    eps: f64,
) -> Result<Tensor, TorchError> {
    if !is_composed()
        && let Some(y) = kernel(x, norm, shift, scale, eps)?
    {
        return Ok(y);
    }
    compose(x, norm, shift, scale, eps)
}

pub(super) fn compose(
    x: &Tensor,
    norm: Norm<'_>,
    shift: &Tensor,
    scale: &Tensor,
    eps: f64,
) -> Result<Tensor, TorchError> {
    let width = x.size().last().copied().unwrap_or_default();
    let none: Option<&Tensor> = None;
    let normal = match norm {
        Norm::Layer => x.f_layer_norm([width], none, none, eps, true)?,
        Norm::Rms(weight) => rms_norm(x, weight, eps)?,
    };
    Ok(shift.f_addcmul(&normal, &scale.f_add_scalar(1.0)?)?)
}

/// RMS norm over the last dimension with weights `[D]`. Computes in float32 and returns the dtype of `x`.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor, TorchError> {
    let width = x.size().last().copied().unwrap_or_default();
    Ok(x.f_to_kind(Kind::Float)?
        .f_rms_norm([width], Some(weight), eps)?
        .f_to_kind(x.kind())?)
}

pub(super) fn kernel(
    x: &Tensor,
    norm: Norm<'_>,
    shift: &Tensor,
    scale: &Tensor,
    eps: f64,
) -> Result<Option<Tensor>, TorchError> {
    let Some(passes) = choose::<Passes>(x, &[shift, scale])? else {
        return Ok(None);
    };
    let mut inputs = vec![x, shift, scale];
    if let Norm::Rms(weight) = norm {
        let fits = weight.size() == x.size()[2..] && weight.device() == x.device();
        if !fits || weight.f_kind()? != x.f_kind()? {
            return Ok(None);
        }
        inputs.push(weight);
    }
    let function = FusedNormModulate {
        weighted: inputs.len() == 4,
        eps,
        passes,
    };
    Ok(Some(autograd::apply(function, &inputs)?.remove(0)))
}
