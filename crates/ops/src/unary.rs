//! Fused functions of one tensor whose derivative is computed from that tensor.

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::autograd::{self, Backward, Forward, Function, Gradients, Outputs};

use crate::rows::KernelElement;

/// A function on the CPU, for each dtype. Tensors are contiguous.
pub(super) trait Unary {
    /// Name for messages.
    const NAME: &'static str;

    fn forward<E: KernelElement>(x: &Tensor) -> autograd::Result<Tensor>;

    /// The gradient of `x`, computed from `x` and the gradient of the result.
    fn backward<E: KernelElement>(x: &Tensor, dy: &Tensor) -> autograd::Result<Tensor>;
}

/// Applies `U` to `x`. Returns `None` on devices other than the CPU, and for dtypes other than float32, bfloat16
/// and float64.
pub(super) fn apply<U: Unary>(x: &Tensor) -> Result<Option<Tensor>, TorchError> {
    if x.device() != Device::Cpu {
        return Ok(None);
    }
    let function = match x.f_kind()? {
        Kind::Float => Fused::of::<U, f32>(),
        Kind::BFloat16 => Fused::of::<U, bf16>(),
        Kind::Double => Fused::of::<U, f64>(),
        _ => return Ok(None),
    };
    Ok(Some(autograd::apply(function, &[x])?.remove(0)))
}

struct Fused {
    name: &'static str,
    forward: fn(&Tensor) -> autograd::Result<Tensor>,
    backward: fn(&Tensor, &Tensor) -> autograd::Result<Tensor>,
}

impl Fused {
    fn of<U: Unary, E: KernelElement>() -> Self {
        Self {
            name: U::NAME,
            forward: U::forward::<E>,
            backward: U::backward::<E>,
        }
    }
}

impl Function for Fused {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(
        &mut self,
        context: &mut Forward<'_>,
        inputs: &[&Tensor],
    ) -> autograd::Result<Outputs> {
        let &[x] = inputs else {
            return Err("it takes one tensor".into());
        };
        let x = x.f_contiguous()?;
        if context.needs_any_grad() {
            context.save(&x);
        }
        Ok(vec![(self.forward)(&x)?])
    }

    fn backward(
        &self,
        context: &Backward<'_>,
        gradients: &Gradients,
    ) -> autograd::Result<Gradients> {
        let Some(dy) = &gradients[0] else {
            return Ok(vec![None]);
        };
        let x = context.saved(0)?;
        Ok(vec![Some((self.backward)(&x, &dy.f_contiguous()?)?)])
    }
}
