//! Both passes on CUDA devices.

use tch::{Kind, Tensor};
use torch_ext::autograd;
use torch_ext::cuda::Argument;

use super::super::cuda::{Modulation, ceil, readable};

/// `x + gate y`, from `x`, `gate` and `y`.
pub(super) fn forward(kernels: &Modulation, inputs: &[&Tensor; 3]) -> autograd::Result<Tensor> {
    let &[x, gate, y] = inputs;
    let (batch, count) = kernels.sizes(x, &[y], &[gate])?;
    let [x, y] = readable(&[x, y])?;
    let gate = kernels.rows(gate)?;
    let z = x.f_empty_like()?;
    // SAFETY: the sizes are checked above. The kernel writes `z`, of the size of `x`.
    unsafe {
        kernels.gate.launch(
            ceil(batch * count, kernels.layout.tokens()),
            &[
                Argument::Tensor(&x),
                Argument::Rows(&gate.tensor),
                Argument::Tensor(&y),
                Argument::Tensor(&z),
                Argument::Int(batch * count),
                Argument::Int(count),
                Argument::Int(gate.stride),
            ],
        )
    }?;
    Ok(z)
}

/// The gradients of `gate` and `y`, from `gate`, `y` and the gradient of the result.
pub(super) fn backward(
    kernels: &Modulation,
    inputs: &[&Tensor; 3],
) -> autograd::Result<[Tensor; 2]> {
    let &[gate, y, gradient] = inputs;
    let (batch, _) = kernels.sizes(y, &[gradient], &[gate])?;
    let [y, gradient] = readable(&[y, gradient])?;
    let (gate, width) = (kernels.rows(gate)?, kernels.width);
    let parts = kernels.parts(&y)?;
    let dy = y.f_empty_like()?;
    let sums = kernels.empty(&[batch, parts.parts, 1, width], Kind::Float)?;
    // SAFETY: the sizes are checked above. The kernel writes `dy`, of the size of `y`, and one sum for each part.
    unsafe {
        kernels.gate_backward.launch(
            batch * parts.parts,
            &[
                Argument::Tensor(&y),
                Argument::Rows(&gate.tensor),
                Argument::Tensor(&gradient),
                Argument::Tensor(&dy),
                Argument::Tensor(&sums),
                Argument::Int(parts.count),
                Argument::Int(parts.parts),
                Argument::Int(parts.tokens),
                Argument::Int(gate.stride),
            ],
        )
    }?;
    let dgate = kernels.empty(&[batch, 1, width], Kind::Float)?;
    kernels.sum_parts(&sums, &dgate, &parts)?;
    Ok([dgate.f_to_kind(kernels.condition)?, dy])
}
