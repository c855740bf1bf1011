//! Functions with a derivative of one's own, in Rust: what `torch.autograd.Function` is in Python.
//!
//! An operation composed of tensor operators has its derivative from libtorch, and pays for it with
//! a temporary tensor a step. A kernel written by hand, a step that libtorch cannot differentiate
//! (a quantiser with a straight-through gradient), or a derivative that is known in closed form needs
//! a function with a forward and a backward pass of its own, and `tch` has none. Here it is a type
//! that implements [`Function`], applied with [`apply`]:
//!
//! ```
//! use tch::{Device, Kind, Tensor};
//! use torch_ext::autograd::{self, Backward, Forward, Function, Gradients, Outputs};
//!
//! /// `x * sigmoid(x)`, which saves its input alone; libtorch's composition saves two tensors.
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
//!         // An output that played no part has no gradient, and nor has the input then.
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
//! // Against finite differences:
//! autograd::check_gradients(|inputs| autograd::apply(Swish, &[&inputs[0]]), &[x], 1e-6, 1e-6)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//!
//! - **Several inputs and outputs.** [`Function::backward`] is given a gradient for each output and
//!   returns one for each input. `None` stands for zero on either side. An input without
//!   `requires_grad` needs none ([`Forward::needs_input_grad`], [`Backward::needs_input_grad`]); an
//!   output can be declared constant ([`Forward::mark_non_differentiable`]).
//! - **Saved tensors** go through libtorch's `SavedVariable`: inputs and outputs may be saved without a
//!   reference cycle, and a tensor that was changed in place after the forward pass is an error of the
//!   backward pass instead of a wrong gradient. Other state is kept in the function's own fields.
//! - **Memory** is freed when libtorch frees it for its own operators: saved tensors and the function
//!   itself after the backward pass, or with the graph. Where the graph is not kept, a backward pass may
//!   write into a saved tensor that nobody else holds ([`Backward::take_saved`]).
//! - **Errors and panics** of `forward` are errors of [`apply`]. Those of `backward` are errors of
//!   `f_backward` or `f_run_backward`, with the function's name and the text. Nothing unwinds through C++.
//! - **Threads.** libtorch runs the backward pass on threads of its own for CUDA, and drops a graph
//!   wherever its last tensor is dropped. Hence `Send + Sync + 'static`.
//! - **Without recording** (`tch::no_grad`, or no input that requires a gradient) only the forward pass
//!   runs, and nothing is kept.
//! - **Autocast.** The forward pass runs in the region it is called in. The backward pass runs in one of
//!   the same kind, wherever it is started from; gradients are cast to the dtypes of their inputs.
//! - **Second derivatives** are refused with an error, unless [`Function::twice_differentiable`] says that
//!   `backward` consists of differentiable operators.
//! - Forward-mode derivatives are not offered.

mod check;
mod raw;

use std::cell::RefCell;
use std::error::Error;

use tch::Tensor;

use crate::{TorchError, ffi};

pub use check::{GradientError, check_gradients};

/// What the two passes return; `?` turns any error into it.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The outputs of a forward pass.
pub type Outputs = Vec<Tensor>;

/// A gradient for each output, or for each input; `None` is zero.
pub type Gradients = Vec<Option<Tensor>>;

/// An operation with a forward and a backward pass of its own; see the [module](self) for an example.
///
/// A value is used for one application: it may carry settings in, and take whatever is not a tensor
/// from `forward` to `backward` in its fields. Tensors are saved with [`Forward::save`].
pub trait Function: Send + Sync + 'static {
    /// Name of the node in the graph, and in errors.
    fn name(&self) -> &'static str;

    /// Computes the outputs. Runs with recording off. The inputs must not be changed in place, and
    /// no tensor may be two of the outputs; an input may be returned as it is.
    ///
    /// # Errors
    /// Whatever keeps it from computing them.
    fn forward(&mut self, context: &mut Forward<'_>, inputs: &[&Tensor]) -> Result<Outputs>;

    /// Computes the gradient with respect to each input, in its shape, from the gradients with
    /// respect to the outputs. `None` stands for zero in both lists; the gradient of an input that does
    /// not need it is ignored. May run more than once, where the graph is kept.
    ///
    /// # Errors
    /// Whatever keeps it from computing them; a saved tensor that was changed is one.
    fn backward(&self, context: &Backward<'_>, gradients: &Gradients) -> Result<Gradients>;

    /// Whether `backward` consists of operators that libtorch differentiates, and may be recorded for
    /// second derivatives. Otherwise it runs with recording off, and a second derivative is an error.
    fn twice_differentiable(&self) -> bool {
        false
    }
}

/// What a forward pass tells about itself.
#[derive(Debug)]
pub struct Forward<'a> {
    needs_input_grad: &'a [bool],
    saved: Vec<Tensor>,
    non_differentiable: Vec<Tensor>,
}

impl Forward<'_> {
    /// Whether the gradient of input `index` will be asked for; `false` for all when nothing is
    /// recorded, so that a forward pass can leave out what only its backward pass needs.
    pub fn needs_input_grad(&self, index: usize) -> bool {
        self.needs_input_grad.get(index).copied().unwrap_or(false)
    }

    /// Whether any gradient will be asked for.
    pub fn needs_any_grad(&self) -> bool {
        self.needs_input_grad.contains(&true)
    }

    /// Keeps a tensor for the backward pass: an input, an output, or one made in between. It is
    /// number 0, 1, ... of the saved ones, in the order of the calls.
    pub fn save(&mut self, tensor: &Tensor) {
        self.saved.push(tensor.shallow_clone());
    }

    /// Declares an output constant: it will not require a gradient. Integer outputs never do.
    pub fn mark_non_differentiable(&mut self, output: &Tensor) {
        self.non_differentiable.push(output.shallow_clone());
    }
}

/// What a backward pass may ask.
#[derive(Debug)]
pub struct Backward<'a> {
    needs_input_grad: &'a [bool],
    overwritable: &'a [bool],
    saved: RefCell<Vec<Option<Tensor>>>,
}

impl Backward<'_> {
    /// Whether the gradient of input `index` is wanted in this pass; it is not where the input does not
    /// require it, or where `f_run_backward` was asked for other tensors only.
    pub fn needs_input_grad(&self, index: usize) -> bool {
        self.needs_input_grad.get(index).copied().unwrap_or(false)
    }

    /// The tensor that was saved as number `index`, as it was then.
    ///
    /// # Errors
    /// Not so many were saved, or it was taken.
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

    /// Saved tensor `index` to write into, for instance to return it as a gradient: `None` where
    /// somebody may still read it, since the graph is kept, or the tensor's memory is shared.
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

/// Applies `function` to `inputs` and records it, if recording is on and an input requires a gradient.
///
/// # Errors
/// [`TorchError::Function`] when the forward pass fails, panics, or changes an input in place;
/// [`TorchError::Libtorch`] when its outputs cannot be recorded.
pub fn apply<F: Function>(
    function: F,
    inputs: &[&Tensor],
) -> std::result::Result<Outputs, TorchError> {
    raw::apply(function, inputs)
}

/// Says that `tensor` is changed in place by something that libtorch does not see, such as a kernel of
/// one's own: a backward pass that needs the old values then fails instead of using the new ones.
///
/// # Errors
/// An undefined tensor.
pub fn bump_version(tensor: &Tensor) -> std::result::Result<(), TorchError> {
    if !tensor.defined() {
        return Err(TorchError::Memory("is undefined".to_owned()));
    }
    // SAFETY: the tensor lives for the call, and is defined.
    ffi::check(unsafe { ffi::te_bump_version(tensor.as_ptr()) })
}
