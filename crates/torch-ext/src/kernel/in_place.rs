//! Kernels that change tensors in place.

use std::marker::PhantomData;
use std::slice;

use tch::Tensor;

use super::borrows::Borrows;
use super::element::Element;
use super::memory::{Input, elements};
use crate::{TorchError, autograd};

/// A tensor that a kernel changes: contiguous, on the CPU, of dtype `T`.
#[derive(Debug)]
pub struct InPlace<'t, T> {
    start: *mut T,
    len: usize,
    tensor: PhantomData<&'t Tensor>,
}

// SAFETY: slices are created only by an `InPlaceScope`, which creates no two that share memory; the
// elements are plain numbers.
unsafe impl<T: Element> Send for InPlace<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Element> Sync for InPlace<'_, T> {}

impl<'t, T: Element> InPlace<'t, T> {
    /// Gives kernels write access to `tensor`; its elements are in row-major order.
    ///
    /// As with libtorch's in-place operators, a backward pass that needs the old values fails.
    ///
    /// # Errors
    /// The tensor is on another device, has another dtype, or is not contiguous.
    pub fn new(tensor: &'t Tensor) -> Result<Self, TorchError> {
        let (start, len) = elements::<T>(tensor)?;
        autograd::bump_version(tensor)?;
        Ok(Self {
            start,
            len,
            tensor: PhantomData,
        })
    }
}

/// Access to tensors that may be changed while a kernel runs; see [`run_in_place`].
#[derive(Debug)]
pub struct InPlaceScope<'scope, 'env: 'scope> {
    borrows: Borrows,
    // As in `Scope`.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl<'scope, 'env> InPlaceScope<'scope, 'env> {
    /// The elements of `input`.
    ///
    /// # Errors
    /// This kernel or another one has write access to some of them.
    pub fn read<T: Element>(
        &'scope self,
        input: &'env Input<'_, T>,
    ) -> Result<&'scope [T], TorchError> {
        if !self.borrows.borrow(input.start, input.len) {
            return Err(shared());
        }
        // SAFETY: `Input::new` checked start and length against a tensor that is borrowed for longer than
        // the kernel runs. `borrow` ensures that no kernel has write access to any of it until the scope
        // ends. By the contract of `run_in_place`, the memory lives and no other code writes to it.
        Ok(unsafe { slice::from_raw_parts(input.start, input.len) })
    }

    /// The elements of `tensor`, for writing.
    ///
    /// # Errors
    /// This kernel or another one has access to some of them.
    // `Borrows` checks at run time that no two slices share memory, as `RefCell` does.
    #[allow(clippy::mut_from_ref)]
    pub fn write<T: Element>(
        &'scope self,
        tensor: &'env InPlace<'_, T>,
    ) -> Result<&'scope mut [T], TorchError> {
        if !self.borrows.borrow_mut(tensor.start, tensor.len) {
            return Err(shared());
        }
        // SAFETY: as in `read`; `borrow_mut` ensures that no other slice of any kernel refers to this memory
        // until the scope ends, and by contract no other code reads it.
        Ok(unsafe { slice::from_raw_parts_mut(tensor.start, tensor.len) })
    }
}

fn shared() -> TorchError {
    TorchError::Memory("shares memory with another tensor that a kernel changes".to_owned())
}

/// Runs a kernel that changes tensors in place.
///
/// Slices in kernels never overlap unless all of them are read-only; [`InPlaceScope`] checks it. Operators of
/// libtorch are not tracked, see [`run`](super::run).
///
/// # Safety
/// As [`run`](super::run) for the inputs that the kernel reads. The same holds for the tensors that it changes, and
/// while it runs, nothing else reads their memory either, except through an [`Input`].
pub unsafe fn run_in_place<'env, R, K>(kernel: K) -> R
where
    K: for<'scope> FnOnce(&'scope InPlaceScope<'scope, 'env>) -> R + Sync,
{
    kernel(&InPlaceScope {
        borrows: Borrows::default(),
        scope: PhantomData,
        env: PhantomData,
    })
}
