//! Statistics of a batch that several processes share.

use std::cell::RefCell;

use tch::Tensor;
use torch_ext::TorchError;
use torch_ext::distributed::SharedGroup;

thread_local! {
    static GROUP: RefCell<Option<SharedGroup>> = const { RefCell::new(None) };
}

/// Runs `body` with the statistics of batches computed over the batches of all processes of `group`, which have the same
/// size: the mean and variance of batch normalisations, and LeCam's mean logits. Gradients pass through them. Without a
/// group, `body` runs in the mode of the caller.
///
/// The switch applies to the calling thread. All processes must run the same layers in the same order.
pub fn with_shared_statistics<T>(group: Option<&SharedGroup>, body: impl FnOnce() -> T) -> T {
    let _guard = group.map(|group| Guard {
        outer: GROUP.replace(Some(group.clone())),
    });
    body()
}

/// The group of [`with_shared_statistics`].
pub(crate) fn shared_group() -> Option<SharedGroup> {
    GROUP.with_borrow(Option::clone)
}

/// The mean of `mean` over the processes that share the batch, if there are several.
pub(crate) fn shared_mean(mean: Tensor) -> Result<Tensor, TorchError> {
    match shared_group() {
        Some(group) => group.mean(&mean),
        None => Ok(mean),
    }
}

/// Restores the group of the caller when it is dropped.
struct Guard {
    outer: Option<SharedGroup>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        GROUP.set(self.outer.take());
    }
}
