//! The sweep on the CPU: access to the memory of the operands, and its division into chunks.

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::kernel::{self as cpu, InPlace, Input, Stored};

use super::kernel::{SquaredNorm, Sweep};
use super::operands::{CHUNK, Factors, Operands, Update};
use crate::scope::run_in_place;

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

/// Like [`update_weights`](super::update_weights), for operands that kernels take and `N` averages.
pub(super) fn sweep<const N: usize>(
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
