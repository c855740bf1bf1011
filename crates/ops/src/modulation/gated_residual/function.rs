//! A gated residual as a function with a gradient.

use tch::Tensor;
use torch_ext::autograd::{self, Backward, Forward, Function, Gradients, Outputs};
use torch_ext::kernel::{Real, Stored};

use super::super::cuda::Modulation;
use super::super::form::{Form, rows};
use super::{cpu, cuda};

/// Returns `x + gate y`. Arguments: `x`, `gate` and `y`.
type GatePass = fn(&[&Tensor; 3]) -> autograd::Result<Tensor>;
/// Returns the gradients of `gate` and `y`. Arguments: `gate`, `y` and the gradient of the result.
type GateBackwardPass = fn(&[&Tensor; 3]) -> autograd::Result<[Tensor; 2]>;

/// Forward and backward pass.
pub(in super::super) enum Passes {
    Cpu {
        forward: GatePass,
        backward: GateBackwardPass,
    },
    Cuda(&'static Modulation),
}

impl Form for Passes {
    fn cpu<C: Stored<A>, A: Real + Stored<A>>() -> Self {
        Self::Cpu {
            forward: cpu::forward::<C, A>,
            backward: cpu::backward::<C, A>,
        }
    }

    fn cuda(kernels: &'static Modulation) -> Self {
        Self::Cuda(kernels)
    }
}

pub(in super::super) struct FusedGate {
    pub(in super::super) passes: Passes,
}

impl Function for FusedGate {
    fn name(&self) -> &'static str {
        "fused gated residual"
    }

    fn forward(
        &mut self,
        context: &mut Forward<'_>,
        inputs: &[&Tensor],
    ) -> autograd::Result<Outputs> {
        let &[x, gate, y] = inputs else {
            return Err("it takes tokens, gate and the tensor to gate".into());
        };
        let (x, gate, y) = (x.f_contiguous()?, rows(gate)?, y.f_contiguous()?);
        if context.needs_any_grad() {
            context.save(&gate);
            context.save(&y);
        }
        let inputs = [&x, &gate, &y];
        Ok(vec![match &self.passes {
            Passes::Cpu { forward, .. } => forward(&inputs)?,
            Passes::Cuda(kernels) => cuda::forward(kernels, &inputs)?,
        }])
    }

    fn backward(
        &self,
        context: &Backward<'_>,
        gradients: &Gradients,
    ) -> autograd::Result<Gradients> {
        let Some(gradient) = &gradients[0] else {
            return Ok(vec![None, None, None]);
        };
        let (gate, y) = (context.saved(0)?, context.saved(1)?);
        let inputs = [&gate, &y, &gradient.f_contiguous()?];
        let [dgate, dy] = match &self.passes {
            Passes::Cpu { backward, .. } => backward(&inputs)?,
            Passes::Cuda(kernels) => cuda::backward(kernels, &inputs)?,
        };
        Ok(vec![Some(gradient.shallow_clone()), Some(dgate), Some(dy)])
    }
}
