//! Functions with custom derivatives in Rust, like `torch.autograd.Function` in Python.
//!
//! libtorch differentiates an operation that is composed of tensor operators, at the cost of one
//! temporary tensor per operator. A function with its own forward and backward pass is needed for a
//! hand-written kernel, for an operation that libtorch cannot differentiate (a quantiser with a
//! straight-through gradient), or for a derivative that is known in closed form. `tch` has no such
//! functions. Here, a type implements [`Function`] and is applied with [`apply`]:
//!
//! ```
//! use tch::{Device, Kind, Tensor};
//! use torch_ext::autograd::{self, Backward, Forward, Function, Gradients, Outputs};
//!
//! /// `x * sigmoid(x)`, which saves only its input; a composition of operators saves two tensors.
//! struct Swish;
//!
//! impl Function for Swish {
//!     fn name(&self) -> &'static str {
//!         "swish"
//!     }
//!
//!     fn forward(&mut self, context: &mut Forward, inputs: &[&Tensor]) -> autograd::Result<Outputs> {
//!         let &[x] = inputs else { return Err("swish takes one input".into()) };
//!         context.save(x);
//!         Ok(vec![x.f_mul(&x.f_sigmoid()?)?])
//!     }
//!
//!     fn backward(&self, context: &Backward, gradients: &Gradients) -> autograd::Result<Gradients> {
//!         // An output that does not affect the loss has no gradient; then the input has none either.
//!         let Some(gradient) = &gradients[0] else { return Ok(vec![None]) };
//!         let x = context.saved(0)?;
//!         let sigmoid = x.f_sigmoid()?;
//!         let slope = sigmoid.f_add(&sigmoid.f_mul(&sigmoid.f_neg()?.f_add_scalar(1.0)?)?.f_mul(&x)?)?;
//!         Ok(vec![Some(gradient.f_mul(&slope)?)])
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let x = Tensor::randn([3, 4], (Kind::Double, Device::Cpu)).set_requires_grad(true);
//! let y = autograd::apply(Swish, &[&x])?.remove(0);
//! y.sum(Kind::Double).f_backward()?;
//! assert_eq!(x.grad().size(), [3, 4]);
//!
//! // Comparison with finite differences:
//! autograd::check_gradients(|inputs| autograd::apply(Swish, &[&inputs[0]]), &[x], 1e-6, 1e-6)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! - **Several inputs and outputs.** [`Function::backward`] receives a gradient for each output and
//!   returns one for each input. `None` stands for zero in both lists. An input without
//!   `requires_grad` needs no gradient ([`Forward::needs_input_grad`], [`Backward::needs_input_grad`]).
//!   An output can be declared constant ([`Forward::mark_non_differentiable`]).
//! - **Saved tensors** use libtorch's `SavedVariable`: inputs and outputs can be saved without a
//!   reference cycle. If a saved tensor was changed in place after the forward pass, the backward pass
//!   returns an error instead of a wrong gradient. Other state is stored in the function's own fields.
//! - **Memory** is freed as for libtorch's own operators: saved tensors and the function itself after
//!   the backward pass, or with the graph. If the graph is not kept, a backward pass may write into a
//!   saved tensor that has no other owner ([`Backward::take_saved`]).
//! - **Errors and panics** of `forward` are errors of [`apply`]. Those of `backward` are errors of
//!   `f_backward` or `f_run_backward`, with the function's name and the text. Nothing unwinds through C++.
//! - **Threads.** For CUDA, libtorch runs the backward pass on its own threads. A graph is dropped on
//!   the thread that drops its last tensor. Functions are therefore `Send + Sync + 'static`.
//! - **Without recording** (`tch::no_grad`, or no input that requires a gradient), only the forward pass
//!   runs, and no tensors are saved.
//! - **Autocast.** The forward pass runs in the region of the caller. The backward pass runs with the
//!   same autocast settings, wherever it is started. Gradients are cast to the dtypes of their inputs.
//! - **Second derivatives** are an error, unless [`Function::twice_differentiable`] states that
//!   `backward` consists of differentiable operators.
//! - **Forward-mode derivatives** are not supported.

mod check;
mod raw;

use std::cell::RefCell;
use std::error::Error;

use tch::Tensor;

use crate::{TorchError, ffi};

pub use check::{GradientError, check_gradients};

/// Result of a forward or backward pass; `?` converts any error.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The outputs of a forward pass.
pub type Outputs = Vec<Tensor>;

/// One gradient per output, or per input; `None` is zero.
pub type Gradients = Vec<Option<Tensor>>;

/// An operation with its own forward and backward pass; see the [module](self) for an example.
///
/// A value is used for one application. Its fields can hold settings, and can pass data that is not a
/// tensor from `forward` to `backward`. Tensors are saved with [`Forward::save`].
pub trait Function: Send + Sync + 'static {
    /// Name of the node in the graph, and in errors.
    fn name(&self) -> &'static str;

    /// Computes the outputs, with gradient recording disabled. The inputs must not be changed in place.
    /// Outputs must be distinct tensors. An input may be returned unchanged.
    ///
    /// # Errors
    /// The outputs cannot be computed.
    fn forward(&mut self, context: &mut Forward<'_>, inputs: &[&Tensor]) -> Result<Outputs>;

    /// Computes the gradient with respect to each input, in the shape of the input, from the gradients
    /// with respect to the outputs. `None` stands for zero in both lists. The gradient of an input that
    /// does not need it is ignored. The function may run more than once if the graph is kept.
    ///
    /// # Errors
    /// The gradients cannot be computed, for example because a saved tensor was changed in place.
    fn backward(&self, context: &Backward<'_>, gradients: &Gradients) -> Result<Gradients>;

    /// Whether `backward` consists of operators that libtorch can differentiate, so that it may be
    /// recorded for second derivatives. Otherwise it runs with recording disabled, and a second
    /// derivative is an error.
    fn twice_differentiable(&self) -> bool {
        false
    }
}

/// Context of a forward pass.
#[derive(Debug)]
pub struct Forward<'a> {
    needs_input_grad: &'a [bool],
    saved: Vec<Tensor>,
    non_differentiable: Vec<Tensor>,
}

impl Forward<'_> {
    /// Whether the gradient of input `index` is needed. It is `false` for all inputs if nothing is
    /// recorded, so that a forward pass can omit what only its backward pass needs.
    pub fn needs_input_grad(&self, index: usize) -> bool {
        self.needs_input_grad.get(index).copied().unwrap_or(false)
    }

    /// Whether the gradient of any input is needed.
    pub fn needs_any_grad(&self) -> bool {
        self.needs_input_grad.contains(&true)
    }

    /// Saves a tensor for the backward pass: an input, an output or an intermediate tensor. Saved tensors
    /// are numbered from 0 in the order of the calls.
    pub fn save(&mut self, tensor: &Tensor) {
        self.saved.push(tensor.shallow_clone());
    }

    /// Declares an output constant: it does not require a gradient. Integer outputs never do.
    pub fn mark_non_differentiable(&mut self, output: &Tensor) {
        self.non_differentiable.push(output.shallow_clone());
    }
}

/// Context of a backward pass.
#[derive(Debug)]
pub struct Backward<'a> {
    needs_input_grad: &'a [bool],
    overwritable: &'a [bool],
    saved: RefCell<Vec<Option<Tensor>>>,
}

impl Backward<'_> {
    /// Whether the gradient of input `index` is needed in this pass. It is not if the input does not
    /// require a gradient, or if `f_run_backward` was called for other tensors only.
    pub fn needs_input_grad(&self, index: usize) -> bool {
        self.needs_input_grad.get(index).copied().unwrap_or(false)
    }

    /// Saved tensor number `index`, unchanged since it was saved.
    ///
    /// # Errors
    /// Fewer tensors were saved, or this one was taken.
    pub fn saved(&self, index: usize) -> std::result::Result<Tensor, TorchError> {
        match self.saved.borrow().get(index) {
            Some(Some(tensor)) => Ok(tensor.shallow_clone()),
            Some(None) => Err(TorchError::Saved { index, taken: true }),
            None => Err(TorchError::Saved {
                index,
                taken: false,
            }),
        }
    }

    /// Takes saved tensor number `index` to write into it, for example to return it as a gradient. `None` if
    /// the tensor may still be read: the graph is kept, or the tensor's memory is shared.
    ///
    /// # Errors
    /// As [`Backward::saved`].
    pub fn take_saved(&self, index: usize) -> std::result::Result<Option<Tensor>, TorchError> {
        let handle = self.saved(index)?;
        if !self.overwritable[index] {
            return Ok(None);
        }
        self.saved.borrow_mut()[index] = None;
        Ok(Some(handle))
    }
}

/// Applies `function` to `inputs`, and records it if recording is enabled and an input requires a gradient.
///
/// # Errors
/// [`TorchError::Function`] if the forward pass fails, panics, or changes an input in place;
/// [`TorchError::Libtorch`] if its outputs cannot be recorded.
pub fn apply<F: Function>(
    function: F,
    inputs: &[&Tensor],
) -> std::result::Result<Outputs, TorchError> {
    raw::apply(function, inputs)
}

/// Tells libtorch that `tensor` is changed in place by code that libtorch does not see, such as a custom
/// kernel. A backward pass that needs the old values then fails instead of using the new ones.
///
/// # Errors
/// The tensor is undefined.
pub fn bump_version(tensor: &Tensor) -> std::result::Result<(), TorchError> {
    if !tensor.defined() {
        return Err(TorchError::Memory("is undefined".to_owned()));
    }
    // SAFETY: the tensor is defined and lives for the call.
    ffi::check(unsafe { ffi::te_bump_version(tensor.as_ptr()) })
}
