//! Deferred computation of a tangent.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use tch::Tensor;

use crate::DiffusionError;

/// A tangent that is computed on first request, without recording a gradient. Clones share the result,
/// which is freed with the last clone.
#[derive(Clone)]
pub(super) struct Tangent(Rc<RefCell<State>>);

enum State {
    Waiting(Box<dyn FnOnce() -> Result<Tensor, DiffusionError>>),
    Ready(Tensor),
    /// During the computation, and permanently if it failed.
    Failed,
}

impl Tangent {
    pub fn new(compute: impl FnOnce() -> Result<Tensor, DiffusionError> + 'static) -> Self {
        Self(Rc::new(RefCell::new(State::Waiting(Box::new(compute)))))
    }

    pub fn compute(&self) -> Result<Tensor, DiffusionError> {
        let tangent = match self.0.replace(State::Failed) {
            State::Waiting(compute) => {
                let _no_grad = tch::no_grad_guard();
                compute()?
            }
            State::Ready(tangent) => tangent,
            State::Failed => {
                let message = "a tangent was requested again after its computation failed";
                return Err(tch::TchError::Torch(message.to_owned()).into());
            }
        };
        self.0.replace(State::Ready(tangent.shallow_clone()));
        Ok(tangent)
    }
}

impl fmt::Debug for Tangent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tangent").finish_non_exhaustive()
    }
}
