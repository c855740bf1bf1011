//! What both operations share: the choice of their form, and the layout of shifts, scales and gates.

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::kernel::{Real, Stored, row_stride};

use super::cuda::Modulation;

/// Number of tokens per work item. Sums over tokens are computed per item first, so they do not depend on the
/// number of threads.
pub(super) const PART: i64 = 64;

/// The passes of an operation, compiled for one pair of dtypes and, on CUDA, for one width.
pub(super) trait Form: Sized {
    /// For shifts, scales and gates of type `C`, and tokens of type `A`.
    fn cpu<C: Stored<A>, A: Real + Stored<A>>() -> Self;

    fn cuda(kernels: &'static Modulation) -> Self;
}

/// The form for tokens `x` and for `conditions` (shifts, scales or gates), if shapes, dtypes and devices are suitable.
pub(super) fn choose<F: Form>(x: &Tensor, conditions: &[&Tensor]) -> Result<Option<F>, TorchError> {
    let size = x.size();
    let &[batch, _, width] = size.as_slice() else {
        return Ok(None);
    };
    let device = x.device();
    let fits = |tensor: &&Tensor| tensor.size() == [batch, 1, width] && tensor.device() == device;
    if x.numel() == 0 || !conditions.iter().all(fits) {
        return Ok(None);
    }
    let kinds: Vec<Kind> = conditions
        .iter()
        .map(|c| c.f_kind())
        .collect::<Result<_, _>>()?;
    let condition = match *kinds.as_slice() {
        [kind] => kind,
        [first, second] if first == second => first,
        _ => return Ok(None),
    };
    Ok(match (device, x.f_kind()?, condition) {
        (Device::Cuda(_), Kind::Float, _) => Modulation::on(device, condition, width).map(F::cuda),
        (Device::Cpu, Kind::Float, Kind::Float) => Some(F::cpu::<f32, f32>()),
        (Device::Cpu, Kind::Float, Kind::BFloat16) => Some(F::cpu::<bf16, f32>()),
        (Device::Cpu, Kind::Double, Kind::Double) => Some(F::cpu::<f64, f64>()),
        _ => None,
    })
}

/// A shift, scale or gate `[B, 1, D]` with contiguous rows. Slices of one `[B, N D]` have them, and are not copied.
pub(super) fn rows(condition: &Tensor) -> Result<Tensor, TorchError> {
    match row_stride(condition) {
        Some(_) => Ok(condition.shallow_clone()),
        None => Ok(condition.f_contiguous()?),
    }
}

/// Number of parts per image, and number of elements per part.
pub(super) fn parts(count: i64, width: i64) -> (usize, usize) {
    (
        (count as usize).div_ceil(PART as usize),
        (PART * width) as usize,
    )
}
