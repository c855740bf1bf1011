use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use tch::Tensor;

use crate::DiffusionError;

/// A tangent that is computed when it is first asked for, without recording a gradient. Clones
/// share the result; it is freed with the last of them.
#[derive(Clone)]
pub(crate) struct Tangent(Rc<RefCell<State>>);

enum State {
    Waiting(Box<dyn FnOnce() -> Result<Tensor, DiffusionError>>),
    Ready(Tensor),
    /// While it is being computed, and for good if that failed.
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
                let message = "a tangent that could not be computed is asked for again";
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
