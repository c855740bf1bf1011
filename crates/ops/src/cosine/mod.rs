//! The alignment loss: spatial normalisation and cosine loss. The only tensor of tokens that the kernels allocate is
//! the gradient, which they compute together with the loss.

mod cpu;
mod cuda;
mod function;
mod kernel;
mod settings;
#[cfg(test)]
mod tests;

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_ext::{TorchError, autograd};

use self::cpu::cosines;
use self::cuda::{Cosine, Shape};
use self::function::{Form, FusedCosine};
use self::settings::NORM_EPS;
use crate::composed::is_composed;

pub use self::settings::ZScore;

/// The negative cosine of each pair of tokens, averaged over samples and tokens: a scalar, for `target` and `projected`
/// `[B, T, D]`. The target is normalised over space first ([`spatial_zscore`]) if `norm` is `Some`.
///
/// Tokens are compared in float32, as if tokens of lower precision had been converted first; float64 stays float64.
///
/// One kernel computes the loss and the gradient of `projected` on the CPU and on CUDA, for float32 and bfloat16, and
/// on the CPU also for float64, if `target` requires no gradient. On CUDA tokens have at most 5,120 numbers, and the
/// kernels must compile. Otherwise libtorch's operators run ([`spatial_zscore`], [`token_cosines`]).
///
/// The kernel prepares the gradient for `expected_grad`, the gradient that the loss is expected to receive in the
/// backward pass, usually its coefficient. Another gradient costs one more pass, and rounds once more.
///
/// # Errors
/// The shapes differ or are not three-dimensional; `norm` is `Some` and there are fewer than two tokens; memory is
/// exhausted.
pub fn cosine_loss(
    norm: Option<ZScore>,
    target: &Tensor,
    projected: &Tensor,
    expected_grad: f64,
) -> Result<Tensor, TorchError> {
    check_pair(target, projected)?;
    if norm.is_some() {
        check_count(target)?;
    }
    if !is_composed()
        && let Some(loss) = kernel(norm, target, projected, expected_grad)?
    {
        return Ok(loss);
    }
    compose(norm, target, projected)
}

/// Normalises `tokens` `[B, T, D]` over space, for each sample and channel: `(x - alpha * mean) / (std + eps)`, with
/// the mean and the unbiased standard deviation over the tokens. The result has the shape, dtype and device of
/// `tokens`, and is computed in their dtype.
///
/// # Errors
/// `tokens` is not three-dimensional, or there are fewer than two tokens; memory is exhausted.
pub fn spatial_zscore(tokens: &Tensor, norm: ZScore) -> Result<Tensor, TorchError> {
    let (mean, std) = token_statistics(tokens)?;
    let centred = tokens.f_sub(&mean.f_mul_scalar(norm.alpha)?)?;
    Ok(centred.f_div(&std.f_add_scalar(norm.eps)?)?)
}

/// The mean and the unbiased standard deviation of `tokens` `[B, T, D]` over the tokens, `[B, 1, D]` each.
///
/// # Errors
/// As [`spatial_zscore`].
pub fn token_statistics(tokens: &Tensor) -> Result<(Tensor, Tensor), TorchError> {
    check_count(tokens)?;
    // `std_mean` computes both in one pass. Its running mean is exact on constant tokens. A sum
    // divided by T has a rounding error there, which the division by eps would amplify.
    let (std, mean) = tokens.f_std_mean_dim(1, true, true)?;
    Ok((mean, std))
}

/// The cosine of each pair of tokens, `[B, T]`, for `target` and `projected` `[B, T, D]`. Tokens are divided by
/// `max(|v|, 1e-12)`, each tensor in its own dtype; the product has the wider of the two dtypes.
///
/// # Errors
/// The shapes differ or are not three-dimensional; memory is exhausted.
pub fn token_cosines(target: &Tensor, projected: &Tensor) -> Result<Tensor, TorchError> {
    check_pair(target, projected)?;
    let product = unit(target)?.f_mul(&unit(projected)?)?;
    Ok(product.f_sum_dim_intlist(-1, false, None)?)
}

fn compose(
    norm: Option<ZScore>,
    target: &Tensor,
    projected: &Tensor,
) -> Result<Tensor, TorchError> {
    let mut target = widened(target)?;
    if let Some(norm) = norm {
        target = spatial_zscore(&target, norm)?;
    }
    let cosines = token_cosines(&target, &widened(projected)?)?;
    Ok(cosines.f_mean(None)?.f_neg()?)
}

/// Scales tokens to length 1 along the last dimension.
fn unit(tokens: &Tensor) -> Result<Tensor, TorchError> {
    let length = tokens
        .f_norm_scalaropt_dim(2.0, -1, true)?
        .f_clamp_min(NORM_EPS)?;
    Ok(tokens.f_div(&length)?)
}

/// Converts tokens to float32, in which losses are computed; float64 tokens stay float64.
///
/// # Errors
/// libtorch failed.
pub fn widened(tokens: &Tensor) -> Result<Tensor, TorchError> {
    Ok(match tokens.f_kind()? {
        Kind::Double => tokens.shallow_clone(),
        _ => tokens.f_to_kind(Kind::Float)?,
    })
}

fn check_pair(target: &Tensor, projected: &Tensor) -> Result<(), TorchError> {
    if target.dim() == 3 && projected.size() == target.size() {
        return Ok(());
    }
    Err(TorchError::Shape {
        what: "projected tokens",
        found: projected.size(),
        expected: "that of the target, [B, T, D]",
    })
}

fn check_count(tokens: &Tensor) -> Result<(), TorchError> {
    match tokens.size()[..] {
        [_, count, _] if count >= 2 => Ok(()),
        _ => Err(TorchError::Shape {
            what: "tokens to normalise",
            found: tokens.size(),
            expected: "[B, T, D] with at least two tokens",
        }),
    }
}

/// The kernel for tensors of the same size `[B, T, D]`.
fn kernel(
    norm: Option<ZScore>,
    target: &Tensor,
    projected: &Tensor,
    expected_grad: f64,
) -> Result<Option<Tensor>, TorchError> {
    let (_, _, width) = target.size3()?;
    let device = target.device();
    let fits = |tensor: &Tensor| tensor.device() == device && !tensor.is_sparse();
    if !fits(target) || !fits(projected) || target.requires_grad() || target.numel() == 0 {
        return Ok(None);
    }
    let shape = Shape {
        target: target.f_kind()?,
        projected: projected.f_kind()?,
        zscore: norm.is_some(),
        width,
    };
    let form = match (device, shape.target, shape.projected) {
        (Device::Cuda(_), ..) => match Cosine::on(device, shape) {
            Some(kernels) => Form::Cuda(kernels),
            None => return Ok(None),
        },
        (Device::Cpu, Kind::Float, Kind::Float) => Form::Cpu(cosines::<f32, f32, f32>),
        (Device::Cpu, Kind::Float, Kind::BFloat16) => Form::Cpu(cosines::<f32, bf16, f32>),
        (Device::Cpu, Kind::BFloat16, Kind::Float) => Form::Cpu(cosines::<bf16, f32, f32>),
        (Device::Cpu, Kind::BFloat16, Kind::BFloat16) => Form::Cpu(cosines::<bf16, bf16, f32>),
        (Device::Cpu, Kind::Double, Kind::Double) => Form::Cpu(cosines::<f64, f64, f64>),
        _ => return Ok(None),
    };
    let function = FusedCosine {
        norm,
        // A gradient prepared for 0 could not be scaled to another value.
        expected_grad: if expected_grad == 0.0 {
            1.0
        } else {
            expected_grad
        },
        form,
    };
    Ok(Some(
        autograd::apply(function, &[target, projected])?.remove(0),
    ))
}
