//! Spatial normalisation and cosine loss as one operation. The only tensor of tokens that it allocates
//! is the gradient, which it computes together with the loss.

mod cuda;
mod kernel;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::autograd::{self, Backward, Forward, Function, Gradients, Outputs};
use torch_ext::kernel::{self as cpu, Element, Input, Output, Real, Stored};

use self::cuda::{Cosine, Shape};
use self::kernel::{CosineSum, Gradient};

pub use self::kernel::ZScore;

/// Returns `CosineLoss::forward(norm.forward(target), projected)`, a scalar, for `target` and `projected`
/// `[B, T, D]`.
///
/// Returns `None` where no fused form exists: for empty tensors, for dtypes other than float32 and
/// bfloat16 (on the CPU also for both in float64), if `target` requires a gradient, or on a device other
/// than the CPU and CUDA. On CUDA it also returns `None` for tokens wider than 5,120, and if the kernels
/// cannot be compiled.
///
/// It computes in float32 (in float64 for float64 tokens), as if bfloat16 tokens had been widened first.
/// Non-contiguous tokens are copied. `expected_grad` is the expected gradient of the loss, usually its
/// coefficient. The gradient of `projected` is prepared for it; the backward pass scales it if the loss
/// receives another gradient.
pub fn cosine_loss(
    norm: Option<ZScore>,
    target: &Tensor,
    projected: &Tensor,
    expected_grad: f64,
) -> Result<Option<Tensor>, TorchError> {
    let size = target.size();
    let &[_, count, width] = size.as_slice() else {
        return Ok(None);
    };
    if projected.size() != size || (norm.is_some() && count < 2) {
        return Ok(None);
    }
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
        (Device::Cuda(_), ..) => match Cosine::new(device, shape) {
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

/// Computes the loss of whole tensors. Its last argument is the expected gradient, if a gradient is
/// needed.
type CpuKernel = fn(&Tensor, &Tensor, Option<ZScore>, Option<f64>) -> LossAndGradient;
type LossAndGradient = autograd::Result<(Tensor, Option<Tensor>)>;

struct FusedCosine {
    norm: Option<ZScore>,
    expected_grad: f64,
    form: Form,
}

/// The implementation for a device.
enum Form {
    Cpu(CpuKernel),
    Cuda(Cosine),
}

impl Function for FusedCosine {
    fn name(&self) -> &'static str {
        "fused alignment loss"
    }

    fn forward(
        &mut self,
        context: &mut Forward<'_>,
        inputs: &[&Tensor],
    ) -> autograd::Result<Outputs> {
        let &[target, projected] = inputs else {
            return Err("it takes encoder tokens and projected tokens".into());
        };
        let expected_grad = context.needs_input_grad(1).then_some(self.expected_grad);
        let (loss, gradient) = match &self.form {
            Form::Cpu(kernel) => {
                let (target, projected) = (target.f_contiguous()?, projected.f_contiguous()?);
                kernel(&target, &projected, self.norm, expected_grad)?
            }
            Form::Cuda(kernels) => kernels.cosines(target, projected, self.norm, expected_grad)?,
        };
        if let Some(gradient) = gradient {
            context.save(&gradient);
        }
        Ok(vec![loss])
    }

    fn backward(
        &self,
        context: &Backward<'_>,
        gradients: &Gradients,
    ) -> autograd::Result<Gradients> {
        let Some(output_grad) = &gradients[0] else {
            return Ok(vec![None, None]);
        };
        if let Form::Cuda(kernels) = &self.form {
            let gradient = match context.take_saved(0)? {
                Some(prepared) => {
                    kernels.rescale(&prepared, output_grad, self.expected_grad)?;
                    prepared
                }
                None => {
                    let factor = output_grad.f_div_scalar(self.expected_grad)?;
                    context.saved(0)?.f_mul(&factor)?
                }
            };
            return Ok(vec![None, Some(gradient)]);
        }
        let factor = output_grad.f_double_value(&[])? / self.expected_grad;
        let gradient = match (factor == 1.0, context.take_saved(0)?) {
            (true, Some(prepared)) => prepared,
            (true, None) => context.saved(0)?,
            (false, Some(mut prepared)) => prepared.f_mul_scalar_(factor)?,
            (false, None) => context.saved(0)?.f_mul_scalar(factor)?,
        };
        Ok(vec![None, Some(gradient)])
    }
}

/// Smallest gradient, in bytes, that is written past the cache. Together with the tokens, it fills the
/// last-level cache of most processors. A smaller gradient stays in the cache for the backward pass.
const PAST_CACHE_BYTES: usize = 8 << 20;

fn cosines<Z: Stored<A>, P: Stored<A>, A: Real>(
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
    let past_cache = batch as usize * len * size_of::<P>() >= PAST_CACHE_BYTES;
    let mut parts = gradient
        .as_mut()
        .map(|gradient| gradient.as_mut_slice().chunks_exact_mut(len));
    let gradients: Vec<_> = (0..batch)
        .map(|_| parts.as_mut().and_then(Iterator::next))
        .collect();
    let sum = cpu::run(|scope| -> Result<f64, TorchError> {
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
                Some(gradient) if past_cache => {
                    cpu::past_cache(gradient, |gradient| compute(Gradient::PastCache(gradient)))
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
