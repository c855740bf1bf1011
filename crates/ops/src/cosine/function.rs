//! The kernels as a function with a gradient.

use tch::Tensor;
use torch_ext::autograd::{self, Backward, Forward, Function, Gradients, Outputs};

use super::cuda::Cosine;
use super::settings::{LossAndGradient, ZScore};

/// Computes the loss of whole tensors. Its last argument is the expected gradient, if a gradient is
/// needed.
type CpuKernel = fn(&Tensor, &Tensor, Option<ZScore>, Option<f64>) -> LossAndGradient;

pub(super) struct FusedCosine {
    pub(super) norm: Option<ZScore>,
    pub(super) expected_grad: f64,
    pub(super) form: Form,
}

/// The implementation for a device.
pub(super) enum Form {
    Cpu(CpuKernel),
    Cuda(&'static Cosine),
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
