//! The update of the weights: clipping, AdamW and moving averages.
//!
//! The kernels work in one sweep over the weights. A first pass reads the gradients to compute their norm. The sweep then reads and writes each element once per
//! step. It scales the gradients as it reads them, and does not write them back.

mod cuda;
mod kernel;
#[cfg(test)]
mod tests;

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::kernel::{self as cpu, InPlace, Input, Stored};
use torch_ext::optim::{self, AdamW};

use self::kernel::{SquaredNorm, Sweep};
use crate::composed::is_composed;
use crate::scope::run_in_place;

pub use self::cuda::PointerTable;

/// Largest number of moving averages that a sweep updates.
pub const AVERAGES: usize = 2;

/// Number of elements that a thread, or a block on CUDA, processes at once. The rounding of the gradient norm depends
/// on it, but not on the number of threads.
const CHUNK: usize = 1 << 14;

/// A weight with its gradient, moments, averages and copy, all of the same shape.
#[derive(Debug)]
pub struct Operands<'a> {
    /// float32, or bfloat16 if `copy` is `Some`.
    pub gradient: Tensor,
    /// float32, contiguous, as are the moments.
    pub weight: &'a Tensor,
    /// The first moment.
    pub exp_avg: &'a Tensor,
    /// The second moment.
    pub exp_avg_sq: &'a Tensor,
    /// One for each of [`Update::decays`], at most [`AVERAGES`].
    pub averages: Vec<&'a Tensor>,
    /// Receives the new weight, in bfloat16.
    pub copy: Option<&'a Tensor>,
}

/// The settings of one update.
#[derive(Debug)]
pub struct Update<'a> {
    /// Learning rate, betas, weight decay and eps.
    pub settings: AdamW,
    /// The step, counted from 1.
    pub step: u64,
    /// Gradients are scaled by `min(1, max_norm / (norm + 1e-6))`.
    pub max_norm: f64,
    /// Decay of each moving average.
    pub decays: &'a [f64],
}

/// The factors of a step, rounded to float32 as in libtorch.
#[derive(Debug, Clone, Copy)]
struct Factors {
    /// `min(1, max_norm / (norm + 1e-6))`; NaN if the norm is NaN.
    clip: f32,
    /// `1 - beta1`.
    first: f32,
    /// `beta2`.
    keep_second: f32,
    /// `1 - beta2`.
    second: f32,
    /// `sqrt(1 - beta2^t)`.
    second_correction: f32,
    eps: f32,
    /// `1 - lr * weight_decay`.
    decay: f32,
    /// `-lr / (1 - beta1^t)`.
    rate: f32,
    /// `decay` and `1 - decay` of each average.
    averages: [(f32, f32); AVERAGES],
}

impl Factors {
    fn new(update: &Update<'_>) -> Self {
        let AdamW {
            lr,
            betas: (beta1, beta2),
            weight_decay,
            eps,
        } = update.settings;
        let step = update.step as f64;
        let mut averages = [(1.0, 0.0); AVERAGES];
        for (average, &decay) in averages.iter_mut().zip(update.decays) {
            *average = (decay as f32, (1.0 - decay) as f32);
        }
        Self {
            clip: 1.0,
            first: (1.0 - beta1) as f32,
            keep_second: beta2 as f32,
            second: (1.0 - beta2) as f32,
            second_correction: (1.0 - beta2.powf(step)).sqrt() as f32,
            eps: eps as f32,
            decay: (1.0 - lr * weight_decay) as f32,
            rate: (-lr / (1.0 - beta1.powf(step))) as f32,
            averages,
        }
    }

    /// Sets the clipping factor. It does not use `f32::min`, which would replace a NaN by 1.
    fn clipped(self, norm: f32, max_norm: f64) -> Self {
        let factor = max_norm as f32 / (norm + 1e-6);
        let clip = if factor > 1.0 { 1.0 } else { factor };
        Self { clip, ..self }
    }
}

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
        (Device::Cpu, 0) => sweep_cpu::<0>(weights, update).map(Some),
        (Device::Cpu, 1) => sweep_cpu::<1>(weights, update).map(Some),
        (Device::Cpu, AVERAGES) => sweep_cpu::<AVERAGES>(weights, update).map(Some),
        (Device::Cuda(_), 0..=AVERAGES) => table.sweep(device, weights, update),
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

/// The memory of the tensors of [`Operands`].
struct Memory<'t, const N: usize> {
    gradient: Gradient<'t>,
    weight: InPlace<'t, f32>,
    exp_avg: InPlace<'t, f32>,
    exp_avg_sq: InPlace<'t, f32>,
    averages: [InPlace<'t, f32>; N],
}

enum Gradient<'t> {
    Float(Input<'t, f32>),
    BFloat16(Input<'t, bf16>, InPlace<'t, bf16>),
}

/// A chunk of a weight and of its other operands.
enum Chunk<'a, const N: usize> {
    Float(Sweep<'a, f32, N>),
    BFloat16(Sweep<'a, bf16, N>),
}

impl<const N: usize> Chunk<'_, N> {
    fn squared_norm(&self) -> f64 {
        match self {
            Self::Float(sweep) => cpu::vectorised(SquaredNorm(sweep.gradient)),
            Self::BFloat16(sweep) => cpu::vectorised(SquaredNorm(sweep.gradient)),
        }
    }

    fn sweep(self, factors: Factors) {
        match self {
            Self::Float(sweep) => cpu::vectorised(Sweep { factors, ..sweep }),
            Self::BFloat16(sweep) => cpu::vectorised(Sweep { factors, ..sweep }),
        }
    }
}

fn sweep_cpu<const N: usize>(
    weights: &[Operands<'_>],
    update: &Update<'_>,
) -> Result<Tensor, TorchError> {
    let gradients = weights
        .iter()
        .map(|operands| Ok(operands.gradient.f_contiguous()?))
        .collect::<Result<Vec<_>, TorchError>>()?;
    let memories = weights
        .iter()
        .zip(&gradients)
        .map(|(operands, gradient)| memory::<N>(operands, gradient))
        .collect::<Result<Vec<_>, TorchError>>()?;
    let factors = Factors::new(update);
    let norm = run_in_place(|scope| {
        // Each chunk with its part of the squared norm.
        let mut chunks: Vec<(Option<Chunk<'_, N>>, f64)> = Vec::new();
        for memory in &memories {
            let mut averages = [(); N].map(|()| <&mut [f32]>::default());
            for (slice, average) in averages.iter_mut().zip(&memory.averages) {
                *slice = scope.write(average)?;
            }
            let weight = scope.write(&memory.weight)?;
            let moments = (
                scope.write(&memory.exp_avg)?,
                scope.write(&memory.exp_avg_sq)?,
            );
            match &memory.gradient {
                Gradient::Float(gradient) => {
                    let gradient = scope.read(gradient)?;
                    let parts = chunks_of(gradient, weight, moments, averages, &mut [], factors);
                    chunks.extend(parts.map(|part| (Some(Chunk::Float(part)), 0.0)));
                }
                Gradient::BFloat16(gradient, copy) => {
                    let (gradient, copy) = (scope.read(gradient)?, scope.write(copy)?);
                    let parts = chunks_of(gradient, weight, moments, averages, copy, factors);
                    chunks.extend(parts.map(|part| (Some(Chunk::BFloat16(part)), 0.0)));
                }
            }
        }
        cpu::for_each(&mut chunks, |(chunk, sum)| {
            if let Some(chunk) = chunk {
                *sum = chunk.squared_norm();
            }
        })?;
        // Summed in the order of the weights, so that the sum does not depend on the threads' timing.
        let squared: f64 = chunks.iter().map(|(_, sum)| sum).sum();
        let norm = squared.sqrt() as f32;
        let factors = factors.clipped(norm, update.max_norm);
        cpu::for_each(&mut chunks, |(chunk, _)| {
            if let Some(chunk) = chunk.take() {
                chunk.sweep(factors);
            }
        })?;
        Ok::<_, TorchError>(norm)
    })?;
    Ok(Tensor::f_full(
        [],
        f64::from(norm),
        (Kind::Float, Device::Cpu),
    )?)
}

fn memory<'t, const N: usize>(
    operands: &'t Operands<'_>,
    gradient: &'t Tensor,
) -> Result<Memory<'t, N>, TorchError> {
    let averages = operands
        .averages
        .iter()
        .map(|average| InPlace::new(average))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Memory {
        gradient: match operands.copy {
            Some(copy) => Gradient::BFloat16(Input::new(gradient)?, InPlace::new(copy)?),
            None => Gradient::Float(Input::new(gradient)?),
        },
        weight: InPlace::new(operands.weight)?,
        exp_avg: InPlace::new(operands.exp_avg)?,
        exp_avg_sq: InPlace::new(operands.exp_avg_sq)?,
        averages: averages
            .try_into()
            .map_err(|averages: Vec<_>| TorchError::Length {
                what: "moving averages",
                left: averages.len(),
                right: N,
            })?,
    })
}

/// Splits the operands of a weight into chunks of [`CHUNK`] elements.
fn chunks_of<'a, G: Stored<f32>, const N: usize>(
    gradient: &'a [G],
    weight: &'a mut [f32],
    (exp_avg, exp_avg_sq): (&'a mut [f32], &'a mut [f32]),
    averages: [&'a mut [f32]; N],
    copy: &'a mut [bf16],
    factors: Factors,
) -> impl Iterator<Item = Sweep<'a, G, N>> {
    let mut averages = averages.map(|average| average.chunks_mut(CHUNK));
    let mut copies = copy.chunks_mut(CHUNK);
    gradient
        .chunks(CHUNK)
        .zip(weight.chunks_mut(CHUNK))
        .zip(exp_avg.chunks_mut(CHUNK))
        .zip(exp_avg_sq.chunks_mut(CHUNK))
        .map(move |(((gradient, weight), exp_avg), exp_avg_sq)| Sweep {
            gradient,
            weight,
            exp_avg,
            exp_avg_sq,
            averages: averages
                .each_mut()
                .map(|average| average.next().unwrap_or_default()),
            copy: copies.next().unwrap_or_default(),
            factors,
        })
}
