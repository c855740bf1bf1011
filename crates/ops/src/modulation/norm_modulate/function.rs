//! Norm and modulation as a function with a gradient.

use tch::Tensor;
use torch_ext::autograd::{self, Backward, Forward, Function, Gradients, Outputs};
use torch_ext::kernel::{Real, Stored};

use super::super::cuda::Modulation;
use super::super::form::{Form, rows};
use super::{cpu, cuda};

/// Returns the result and the statistics `[B, T, 2]`, from tokens, shift and scale, the weights of an RMS norm, and
/// eps.
type NormPass = fn(&[&Tensor; 3], Option<&Tensor>, f64) -> autograd::Result<[Tensor; 2]>;
/// Returns the gradient of the tokens and, in float32 or float64, two sums over tokens `[B, 2, D]`: of the gradient
/// of the result, and of that gradient times the normalised token. Arguments: tokens, scale, statistics and the
/// gradient of the result; the weights of an RMS norm.
type NormBackwardPass = fn(&[&Tensor; 4], Option<&Tensor>) -> autograd::Result<[Tensor; 2]>;

/// Forward and backward pass.
pub(in super::super) enum Passes {
    Cpu {
        forward: NormPass,
        backward: NormBackwardPass,
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

pub(in super::super) struct FusedNormModulate {
    /// Whether it is an RMS norm, whose weights are the fourth input.
    pub(in super::super) weighted: bool,
    pub(in super::super) eps: f64,
    pub(in super::super) passes: Passes,
}

impl Function for FusedNormModulate {
    fn name(&self) -> &'static str {
        "fused norm and modulation"
    }

    fn forward(
        &mut self,
        context: &mut Forward<'_>,
        inputs: &[&Tensor],
    ) -> autograd::Result<Outputs> {
        let &[x, shift, scale, ref weight @ ..] = inputs else {
            return Err("it takes tokens, shift and scale, and the weights of an RMS norm".into());
        };
        let (x, shift, scale) = (x.f_contiguous()?, rows(shift)?, rows(scale)?);
        let weight = weight.first().map(|w| w.f_contiguous()).transpose()?;
        let inputs = [&x, &shift, &scale];
        let weight = weight.as_ref();
        let [y, statistics] = match &self.passes {
            Passes::Cpu { forward, .. } => forward(&inputs, weight, self.eps)?,
            Passes::Cuda(kernels) => cuda::forward(kernels, &inputs, weight, self.eps)?,
        };
        if context.needs_any_grad() {
            for saved in [&x, &scale, &statistics].into_iter().chain(weight) {
                context.save(saved);
            }
        }
        Ok(vec![y])
    }

    fn backward(
        &self,
        context: &Backward<'_>,
        gradients: &Gradients,
    ) -> autograd::Result<Gradients> {
        let Some(dy) = &gradients[0] else {
            return Ok((0..3 + usize::from(self.weighted)).map(|_| None).collect());
        };
        let [x, scale, statistics] = [context.saved(0)?, context.saved(1)?, context.saved(2)?];
        let weight = self.weighted.then(|| context.saved(3)).transpose()?;
        let inputs = [&x, &scale, &statistics, &dy.f_contiguous()?];
        let [dx, sums] = match &self.passes {
            Passes::Cpu { backward, .. } => backward(&inputs, weight.as_ref())?,
            Passes::Cuda(kernels) => cuda::backward(kernels, &inputs, weight.as_ref())?,
        };
        let of = |index| sums.f_narrow(1, index, 1);
        let (dshift, along) = (of(0)?.f_to_kind(scale.kind())?, of(1)?);
        let Some(weight) = weight else {
            let dscale = along.f_to_kind(scale.kind())?;
            return Ok([dx, dshift, dscale].map(Some).into());
        };
        let dscale = along.f_mul(&weight)?.f_to_kind(scale.kind())?;
        let dweight = scale
            .f_to_kind(along.kind())?
            .f_add_scalar(1.0)?
            .f_mul(&along)?
            .f_sum_dim_intlist([0, 1].as_slice(), false, None)?;
        Ok([dx, dshift, dscale, dweight].map(Some).into())
    }
}
