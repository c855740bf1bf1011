//! Spatial normalisation and cosine loss as one operation: no tensor of tokens is made but the gradient,
//! and that while the loss is computed.

mod cuda;
mod kernel;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_ext::autograd::{self, Backward, Forward, Function, Gradients, Outputs};
use torch_ext::kernel::{self as cpu, Element, Input, Output, Real, Stored};

use self::cuda::{Cosine, Shape};
use self::kernel::{CosineSum, Gradient, ZScore};
use crate::{AlignmentError, SpatialNorm, tokens};

/// `CosineLoss::forward(norm.forward(target), projected)`, for `target` and `projected` `[B, T, D]`; a
/// scalar. `None` where there is no fused form: for other dtypes than float32, bfloat16 and (on the CPU,
/// both) float64, when `target` requires a gradient, or on a device other than the CPU and CUDA; on CUDA
/// also for tokens wider than 5,120, and where kernels cannot be compiled.
///
/// Computed in float32 (float64) whatever the dtypes, as if bfloat16 tokens had been widened first. Not
/// contiguous tokens are copied. `expected` is the gradient that the loss will be given, usually its
/// coefficient: if it is that, the gradient of `projected` is ready, and scaled otherwise.
pub(crate) fn cosine(
    norm: &SpatialNorm,
    target: &Tensor,
    projected: &Tensor,
    expected: f64,
) -> Result<Option<Tensor>, AlignmentError> {
    norm.validate()?;
    let (_, count, width) = tokens::pair(target, projected)?;
    let norm = match *norm {
        SpatialNorm::None => None,
        SpatialNorm::ZScore { .. } if count < 2 => {
            return Err(AlignmentError::TooFewTokens(count));
        }
        SpatialNorm::ZScore { alpha, eps } => Some(ZScore { alpha, eps }),
    };
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
        // A gradient prepared for 0 could not be scaled to anything else.
        expected: if expected == 0.0 { 1.0 } else { expected },
        form,
    };
    Ok(Some(
        autograd::apply(function, &[target, projected])?.remove(0),
    ))
}

/// Loss, and gradient if asked for, of whole tensors.
type Kernel = fn(&Tensor, &Tensor, Option<ZScore>, Option<f64>) -> Computed;
type Computed = autograd::Result<(Tensor, Option<Tensor>)>;

struct FusedCosine {
    norm: Option<ZScore>,
    expected: f64,
    form: Form,
}

/// What computes it.
enum Form {
    Cpu(Kernel),
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
        let expected = context.needs_input_grad(1).then_some(self.expected);
        let (loss, gradient) = match &self.form {
            Form::Cpu(kernel) => {
                let (target, projected) = (target.f_contiguous()?, projected.f_contiguous()?);
                kernel(&target, &projected, self.norm, expected)?
            }
            Form::Cuda(kernels) => kernels.cosines(target, projected, self.norm, expected)?,
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
        let Some(given) = &gradients[0] else {
            return Ok(vec![None, None]);
        };
        if let Form::Cuda(kernels) = &self.form {
            let gradient = match context.take_saved(0)? {
                Some(own) => {
                    kernels.rescale(&own, given, self.expected)?;
                    own
                }
                None => {
                    let factor = given.f_div_scalar(self.expected)?;
                    context.saved(0)?.f_mul(&factor)?
                }
            };
            return Ok(vec![None, Some(gradient)]);
        }
        let factor = given.f_double_value(&[])? / self.expected;
        let gradient = match (factor == 1.0, context.take_saved(0)?) {
            (true, Some(own)) => own,
            (true, None) => context.saved(0)?,
            (false, Some(mut own)) => own.f_mul_scalar_(factor)?,
            (false, None) => context.saved(0)?.f_mul_scalar(factor)?,
        };
        Ok(vec![None, Some(gradient)])
    }
}

/// Bytes from which on a gradient is written past the cache: with the tokens, it fills the last cache of
/// most processors, and less is better kept there for the backward pass.
const LARGE: usize = 8 << 20;

fn cosines<Z: Stored<A>, P: Stored<A>, A: Real>(
    target: &Tensor,
    projected: &Tensor,
    norm: Option<ZScore>,
    expected: Option<f64>,
) -> Computed {
    let (batch, count, width) = target.size3()?;
    let slope = -expected.unwrap_or_default() / (batch * count) as f64;
    let mut gradient = expected
        .map(|_| Output::<P>::new(&[batch, count, width]))
        .transpose()?;
    let (z, p) = (Input::<Z>::new(target)?, Input::<P>::new(projected)?);
    let len = (count * width) as usize;
    let large = batch as usize * len * size_of::<P>() >= LARGE;
    let mut parts = gradient
        .as_mut()
        .map(|gradient| gradient.as_mut_slice().chunks_exact_mut(len));
    let gradients: Vec<_> = (0..batch)
        .map(|_| parts.as_mut().and_then(Iterator::next))
        .collect();
    let sum = cpu::run(|scope| -> Result<f64, torch_ext::TorchError> {
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
                Some(gradient) if large => {
                    cpu::past_cache(gradient, |gradient| compute(Gradient::PastCache(gradient)))
                }
                Some(gradient) => compute(Gradient::Cached(gradient)),
            };
        })?;
        // In the order of the images, whichever thread was first.
        Ok(images.iter().map(|(.., sum)| sum).sum())
    })?;
    let mean = -sum / (batch * count) as f64;
    let loss = Tensor::f_full([] as [i64; 0], mean, (<A as Element>::KIND, Device::Cpu))?;
    Ok((loss, gradient.map(Output::into_tensor)))
}
