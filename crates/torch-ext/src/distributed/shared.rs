//! A group that several owners use, also inside of a graph.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::Tensor;

use super::{ProcessGroup, Reduce};
use crate::TorchError;
use crate::autograd::{self, Backward, Forward, Function, Gradients, Outputs};

/// A [`ProcessGroup`] with several owners, of which one at a time uses it.
#[derive(Debug, Clone)]
pub struct SharedGroup(Arc<Mutex<ProcessGroup>>);

impl SharedGroup {
    /// Takes over a group.
    pub fn new(group: ProcessGroup) -> Self {
        Self(Arc::new(Mutex::new(group)))
    }

    /// Returns the group, for this thread alone. Every process must call its operations in the same order.
    pub fn lock(&self) -> MutexGuard<'_, ProcessGroup> {
        // A group is not changed from Rust, so a panic leaves it valid.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.lock().world().size
    }

    /// Returns the mean of the processes' tensors, and records it in the graph. Its gradient is the mean of the processes'
    /// gradients: if every process then averages the gradients of its weights, as [`Reducer`](super::Reducer) does, they
    /// are those of the mean of the processes' losses.
    ///
    /// # Errors
    /// Those of [`ProcessGroup::all_reduce_`].
    pub fn mean(&self, tensor: &Tensor) -> Result<Tensor, TorchError> {
        Ok(autograd::apply(Mean(self.clone()), &[tensor])?.remove(0))
    }
}

/// The mean over the processes. Its derivative is the same operation.
struct Mean(SharedGroup);

impl Mean {
    fn of(&self, tensor: &Tensor) -> Result<Tensor, TorchError> {
        let group = self.0.lock();
        let mean = tensor
            .f_div_scalar(group.world().size as f64)?
            .f_contiguous()?;
        group.all_reduce_(&mean, Reduce::Sum)?;
        Ok(mean)
    }
}

impl Function for Mean {
    fn name(&self) -> &'static str {
        "mean over processes"
    }

    fn forward(&mut self, _: &mut Forward<'_>, inputs: &[&Tensor]) -> autograd::Result<Outputs> {
        let &[tensor] = inputs else {
            return Err("it takes one tensor".into());
        };
        Ok(vec![self.of(tensor)?])
    }

    fn backward(&self, _: &Backward<'_>, gradients: &Gradients) -> autograd::Result<Gradients> {
        // The output affects the loss of every process, or of none.
        Ok(vec![match &gradients[0] {
            Some(gradient) => Some(self.of(gradient)?),
            None => None,
        }])
    }
}
