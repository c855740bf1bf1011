//! The loss of whole tensors on the CPU.

use std::marker::PhantomData;

use tch::{Device, Tensor};
use torch_ext::TorchError;
use torch_ext::kernel::{self as cpu, Element, Input, Output, Real, Stored};

use super::kernel::{CosineSum, Gradient};
use super::settings::{LossAndGradient, ZScore};
use crate::scope::run;

/// Smallest gradient, in bytes, that is written past the cache. Together with the tokens, it fills the
/// last-level cache of most processors. A smaller gradient stays in the cache for the backward pass.
const STREAMED_BYTES: usize = 8 << 20;

/// The loss and, if `expected_grad` is `Some`, the gradient of `projected`. Both tensors are contiguous.
pub(super) fn cosines<Z: Stored<A>, P: Stored<A>, A: Real>(
    target: &Tensor,
    projected: &Tensor,
    norm: Option<ZScore>,
    expected_grad: Option<f64>,
) -> LossAndGradient {
    let (batch, count, width) = target.size3()?;
    let slope = -expected_grad.unwrap_or_default() / (batch * count) as f64;
    let mut gradient = expected_grad
        .map(|_| Output::<P>::new(&[batch, count, width]))
        .transpose()?;
    let (z, p) = (Input::<Z>::new(target)?, Input::<P>::new(projected)?);
    let len = (count * width) as usize;
    let streamed = batch as usize * len * size_of::<P>() >= STREAMED_BYTES && cpu::streams();
    let mut parts = gradient
        .as_mut()
        .map(|gradient| gradient.as_mut_slice().chunks_exact_mut(len));
    let gradients: Vec<_> = (0..batch)
        .map(|_| parts.as_mut().and_then(Iterator::next))
        .collect();
    let sum = run(|scope| -> Result<f64, TorchError> {
        let mut images: Vec<_> = scope
            .read(&z)
            .chunks_exact(len)
            .zip(scope.read(&p).chunks_exact(len))
            .zip(gradients)
            .map(|((target, projected), gradient)| (target, projected, gradient, 0.0))
            .collect();
        cpu::for_each(&mut images, |(target, projected, gradient, sum)| {
            let compute = |gradient: Gradient<'_, P>| {
                cpu::vectorised(CosineSum {
                    target,
                    projected,
                    gradient,
                    width: width as usize,
                    norm,
                    slope,
                    accumulate_in: PhantomData::<A>,
                })
            };
            *sum = match gradient.as_deref_mut() {
                None => compute(Gradient::None),
                Some(gradient) if streamed => {
                    cpu::stream(gradient, |gradient| compute(Gradient::Streamed(gradient)))
                }
                Some(gradient) => compute(Gradient::Cached(gradient)),
            };
        })?;
        // Summed in the order of the images, so that the sum does not depend on the threads' timing.
        Ok(images.iter().map(|(.., sum)| sum).sum())
    })?;
    let mean = -sum / (batch * count) as f64;
    let loss = Tensor::f_full([] as [i64; 0], mean, (<A as Element>::KIND, Device::Cpu))?;
    Ok((loss, gradient.map(Output::into_tensor)))
}
