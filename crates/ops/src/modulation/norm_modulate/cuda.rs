//! Both passes on CUDA devices.

use tch::{Kind, Tensor};
use torch_ext::cuda::{self, Argument};
use torch_ext::{TorchError, autograd};

use super::super::cuda::{Modulation, ceil, readable};

/// The result `y` and the statistics `[B, T, 2]`, from tokens, shift and scale, and the weights of an RMS norm.
pub(super) fn forward(
    kernels: &Modulation,
    inputs: &[&Tensor; 3],
    weight: Option<&Tensor>,
    eps: f64,
) -> autograd::Result<[Tensor; 2]> {
    let &[x, shift, scale] = inputs;
    let (batch, count) = kernels.sizes(x, &[], &[shift, scale])?;
    let width = kernels.width;
    let x = cuda::readable(x)?;
    let (shift, scale) = (kernels.rows(shift)?, kernels.rows(scale)?);
    let weight = readable_weight(weight, width)?;
    let y = kernels.empty(&[batch, count, width], kernels.condition)?;
    let statistics = kernels.empty(&[batch, count, 2], Kind::Float)?;
    // SAFETY: the sizes are checked above. The kernel writes one token of `y` and two statistics for each token
    // of `x`.
    unsafe {
        kernels.norm_modulate.launch(
            ceil(batch * count, kernels.layout.tokens()),
            &[
                Argument::Tensor(&x),
                Argument::Rows(&shift.tensor),
                Argument::Rows(&scale.tensor),
                weight.as_ref().map_or(Argument::Null, Argument::Tensor),
                Argument::Tensor(&y),
                Argument::Tensor(&statistics),
                Argument::Int(batch * count),
                Argument::Int(count),
                Argument::Int(shift.stride),
                Argument::Int(scale.stride),
                Argument::Float(eps),
            ],
        )
    }?;
    Ok([y, statistics])
}

/// The gradient of the tokens and the sums over tokens, from tokens, scale, statistics and the gradient of `y`,
/// and the weights of an RMS norm.
pub(super) fn backward(
    kernels: &Modulation,
    inputs: &[&Tensor; 4],
    weight: Option<&Tensor>,
) -> autograd::Result<[Tensor; 2]> {
    let &[x, scale, statistics, dy] = inputs;
    let (batch, count) = kernels.sizes(x, &[dy], &[scale])?;
    if statistics.size() != [batch, count, 2] {
        return Err(TorchError::Shape {
            what: "the statistics of tokens",
            found: statistics.size(),
            expected: "[B, T, 2]",
        }
        .into());
    }
    let [x, statistics, dy] = readable(&[x, statistics, dy])?;
    let (scale, width) = (kernels.rows(scale)?, kernels.width);
    let weight = readable_weight(weight, width)?;
    let parts = kernels.parts(&x)?;
    let dx = x.f_empty_like()?;
    let sums = kernels.empty(&[batch, parts.parts, 2, width], Kind::Float)?;
    // SAFETY: the sizes are checked above. The kernel writes `dx`, of the size of `x`, and two sums for each part.
    unsafe {
        kernels.norm_modulate_backward.launch(
            batch * parts.parts,
            &[
                Argument::Tensor(&x),
                Argument::Rows(&scale.tensor),
                weight.as_ref().map_or(Argument::Null, Argument::Tensor),
                Argument::Tensor(&statistics),
                Argument::Tensor(&dy),
                Argument::Tensor(&dx),
                Argument::Tensor(&sums),
                Argument::Int(parts.count),
                Argument::Int(parts.parts),
                Argument::Int(parts.tokens),
                Argument::Int(scale.stride),
            ],
        )
    }?;
    let of_images = kernels.empty(&[batch, 2, width], Kind::Float)?;
    kernels.sum_parts(&sums, &of_images, &parts)?;
    Ok([dx, of_images])
}

/// The weights `[D]` of an RMS norm as the kernels read them.
fn readable_weight(weight: Option<&Tensor>, width: i64) -> Result<Option<Tensor>, TorchError> {
    match weight {
        Some(weight) if weight.size() != [width] => Err(TorchError::Shape {
            what: "the weights of an RMS norm",
            found: weight.size(),
            expected: "[D]",
        }),
        weight => weight.map(cuda::readable).transpose(),
    }
}
