//! Numerical checks of gradients.

use tch::{Kind, Tensor};
use thiserror::Error;

use crate::TorchError;

/// The result of a failed [`check_gradients`].
#[derive(Debug, Error)]
pub enum GradientError {
    /// The function failed, or libtorch did.
    #[error(transparent)]
    Torch(#[from] TorchError),

    /// An input is not float64: finite differences in float32 are too inaccurate.
    #[error("input {index} is {kind:?}; gradients are checked in Double")]
    Kind {
        /// Which input.
        index: usize,
        /// Its dtype.
        kind: Kind,
    },

    /// The backward pass and finite differences disagree.
    #[error(
        "derivative of output {output} by element {element} of input {input}: {found} from the \
         backward pass, {expected} from finite differences"
    )]
    Differs {
        /// Which input.
        input: usize,
        /// Index of the element in the flattened input.
        element: i64,
        /// Which output.
        output: usize,
        /// Derivative from the backward pass, projected on the direction in which the output was probed.
        found: f64,
        /// The same from finite differences.
        expected: f64,
    },
}

/// Compares the gradients of `function` at `inputs` with central differences of `step`
/// (`torch.autograd.gradcheck`), for every input that requires a gradient and every output that has one.
///
/// Each output is projected on one direction that weights its elements unequally. Derivatives may differ by
/// `tolerance * (1 + |expected|)`. Inputs that require a gradient must be float64. For values near 1, use 1e-6
/// for both `step` and `tolerance`.
///
/// # Errors
/// The first difference; an input that requires a gradient and is not float64; errors of `function`.
pub fn check_gradients(
    function: impl Fn(&[Tensor]) -> Result<Vec<Tensor>, TorchError>,
    inputs: &[Tensor],
    step: f64,
    tolerance: f64,
) -> Result<(), GradientError> {
    for (index, input) in inputs.iter().enumerate() {
        if input.requires_grad() && input.kind() != Kind::Double {
            return Err(GradientError::Kind {
                index,
                kind: input.kind(),
            });
        }
    }
    let inputs: Vec<Tensor> = inputs
        .iter()
        .map(|input| {
            let copy = input.detach().copy();
            copy.set_requires_grad(input.requires_grad())
        })
        .collect();
    let outputs = function(&inputs)?;
    for output in (0..outputs.len()).filter(|&output| outputs[output].requires_grad()) {
        let probe = |outputs: &[Tensor]| -> Result<Tensor, TorchError> {
            let value = outputs[output].f_flatten(0, -1)?;
            let weights = Tensor::f_arange(value.size()[0], (Kind::Double, value.device()))?;
            Ok(value.f_dot(&weights.f_mul_scalar(0.7)?.f_cos()?)?)
        };
        let probed = probe(&outputs)?;
        for (index, input) in inputs.iter().enumerate().filter(|(_, i)| i.requires_grad()) {
            let gradient = Tensor::f_run_backward(&[&probed], &[input], true, false)
                .map_err(TorchError::from)?
                .remove(0);
            // The gradient is undefined if the output does not depend on the input.
            let gradient = match gradient.defined() {
                true => gradient,
                false => input.f_zeros_like().map_err(TorchError::from)?,
            };
            for element in 0..input.numel() as i64 {
                let at = |shift: f64| -> Result<f64, TorchError> {
                    tch::no_grad(|| {
                        let mut moved: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
                        let copy = input.detach().copy();
                        let _ = copy.view(-1).get(element).f_add_scalar_(shift)?;
                        moved[index] = copy;
                        Ok(probe(&function(&moved)?)?.f_double_value(&[])?)
                    })
                };
                let expected = (at(step)? - at(-step)?) / (2.0 * step);
                let found = gradient
                    .f_flatten(0, -1)
                    .and_then(|flat| flat.f_double_value(&[element]))
                    .map_err(TorchError::from)?;
                let close = (found - expected).abs() <= tolerance * (1.0 + expected.abs());
                if !close {
                    return Err(GradientError::Differs {
                        input: index,
                        element,
                        output,
                        found,
                        expected,
                    });
                }
            }
        }
    }
    Ok(())
}
