//! Gradients averaged over processes.

use std::ptr::{self, NonNull};

use tch::{Kind, Tensor};

use super::{ProcessGroup, World};
use crate::TorchError;
use crate::ffi::{self, RawReducer, handles};

/// How a [`Reducer`] works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReducerSettings {
    /// Size of a bucket, in bytes. Small buckets start earlier, large ones use the network better.
    pub bucket_bytes: usize,
    /// Dtype of the reduction, such as bfloat16, which halves the bytes; `None` for that of the gradients.
    pub dtype: Option<Kind>,
}

impl Default for ReducerSettings {
    /// Buckets of 25 MiB, as in PyTorch, in the dtype of the gradients.
    fn default() -> Self {
        Self {
            bucket_bytes: 25 << 20,
            dtype: None,
        }
    }
}

/// Averages the gradients of weights over the processes of a group (c10d's `Reducer`). Weights on a CUDA device need a group
/// with that device.
///
/// Weights are put in buckets. During the backward pass, the reduction of a bucket starts when its last gradient is
/// computed, and runs while the gradients of the next buckets are. The backward pass ends when all are reduced.
///
/// The buckets do not change after the first use, so a step has the same bits in a process that has just started.
#[derive(Debug)]
pub struct Reducer {
    raw: NonNull<RawReducer>,
    world: World,
}

// SAFETY: it may be used and freed on any thread, one at a time.
unsafe impl Send for Reducer {}

impl Reducer {
    /// Creates the reducer of those `weights` that `loss` depends on. They must be leaves that require gradients, have no
    /// gradient yet, and be the same in all processes. `loss` must have been computed, as in every later step.
    ///
    /// # Errors
    /// A tensor is not a leaf that requires a gradient; the loss depends on none; the dtype is not a floating-point
    /// dtype; a process ended or did not answer in time.
    pub fn new(
        weights: &[Tensor],
        loss: &Tensor,
        group: &ProcessGroup,
        settings: ReducerSettings,
    ) -> Result<Self, TorchError> {
        let world = group.world();
        let operation = || "preparing the reduction of gradients".to_owned();
        let bytes = i64::try_from(settings.bucket_bytes).unwrap_or(i64::MAX);
        if let Some(index) = weights
            .iter()
            .position(|w| !w.requires_grad() || !w.is_leaf())
        {
            return Err(TorchError::Distributed {
                operation: operation(),
                rank: world.rank,
                size: world.size,
                reason: format!("tensor {index} is not a leaf that requires a gradient"),
            });
        }
        let dtype = settings.dtype.map_or(Ok(-1), ffi::dtype)?;
        let mut out = ptr::null_mut();
        // SAFETY: the list has the passed length; list and loss live for the call, which shares the tensors and the
        // group and reads the loss' graph; `out` is valid for writes.
        let status = unsafe {
            ffi::te_reducer_new(
                group.raw(),
                handles(weights).as_ptr(),
                weights.len(),
                loss.as_ptr(),
                bytes,
                dtype,
                &mut out,
            )
        };
        Ok(Self {
            raw: world.take(operation, status, out)?,
            world: world.clone(),
        })
    }

    /// Computes the gradients of `loss`, a scalar, averaged over the processes. Weights that the loss does not depend on
    /// keep no gradient.
    ///
    /// The gradients are views of the reducer's buckets. Clear them before the next call. On CUDA devices, this returns when
    /// the work is queued, as other operations of [`ProcessGroup::nccl`] do.
    ///
    /// # Errors
    /// A process ended or did not answer in time; the backward pass failed. Then the reducer must not be used again.
    pub fn backward(&mut self, loss: &Tensor) -> Result<(), TorchError> {
        // SAFETY: reducer and loss live for the call.
        let status = unsafe { ffi::te_reducer_backward(self.raw.as_ptr(), loss.as_ptr()) };
        self.world
            .check(|| "the reduction of gradients".to_owned(), status)
    }
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: `te_reducer_new` made it, and nothing uses it after this: it removes its hooks from the weights.
        let status = unsafe { ffi::te_reducer_free(self.raw.as_ptr()) };
        if let Err(error) = ffi::check(status) {
            tracing::debug!("the reducer did not end cleanly: {error}");
        }
    }
}
