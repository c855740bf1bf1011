//! Norm and rotation as a function with a gradient.

use tch::Tensor;
use torch_ext::autograd::{self, Backward, Forward, Function, Gradients, Outputs};

use super::cpu::{backward, forward};
use crate::rows::KernelElement;

/// Arguments: `qkv`, two weights, cosines and sines; eps.
type ForwardPass = fn(&[&Tensor; 5], f64) -> autograd::Result<Tensor>;
/// Arguments: as [`ForwardPass`], and the gradient of the result. Returns the gradients of the first three tensors.
type BackwardPass = fn(&[&Tensor; 5], f64, &Tensor) -> autograd::Result<[Tensor; 3]>;

/// Forward and backward pass for one dtype.
pub(super) struct Passes {
    forward: ForwardPass,
    backward: BackwardPass,
}

impl Passes {
    pub(super) fn of<E: KernelElement>() -> Self {
        Self {
            forward: forward::<E>,
            backward: backward::<E>,
        }
    }
}

pub(super) struct NormRotate {
    pub(super) passes: Passes,
    pub(super) eps: f64,
}

impl Function for NormRotate {
    fn name(&self) -> &'static str {
        "fused norm and rotation"
    }

    fn forward(
        &mut self,
        context: &mut Forward<'_>,
        inputs: &[&Tensor],
    ) -> autograd::Result<Outputs> {
        let inputs: Vec<Tensor> = inputs
            .iter()
            .map(|input| input.f_contiguous())
            .collect::<Result<_, _>>()?;
        let [qkv, of_queries, of_keys, cosines, sines] = inputs.as_slice() else {
            return Err("it takes queries, keys and values, two weights, cosines and sines".into());
        };
        let inputs = [qkv, of_queries, of_keys, cosines, sines];
        if context.needs_any_grad() {
            for saved in inputs {
                context.save(saved);
            }
        }
        Ok(vec![(self.passes.forward)(&inputs, self.eps)?])
    }

    fn backward(
        &self,
        context: &Backward<'_>,
        gradients: &Gradients,
    ) -> autograd::Result<Gradients> {
        let Some(dy) = &gradients[0] else {
            return Ok((0..5).map(|_| None).collect());
        };
        let [qkv, of_queries, of_keys] = [context.saved(0)?, context.saved(1)?, context.saved(2)?];
        let (cosines, sines) = (context.saved(3)?, context.saved(4)?);
        let inputs = [&qkv, &of_queries, &of_keys, &cosines, &sines];
        let [dqkv, of_queries, of_keys] =
            (self.passes.backward)(&inputs, self.eps, &dy.f_contiguous()?)?;
        let gradients = [Some(dqkv), Some(of_queries), Some(of_keys), None, None];
        Ok(gradients.into())
    }
}
