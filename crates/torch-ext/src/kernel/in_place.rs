use std::marker::PhantomData;
use std::slice;

use tch::Tensor;

use super::lent::Lent;
use super::memory::{Element, Input, elements};
use crate::{TorchError, autograd};

/// A tensor that a kernel changes: contiguous, on the CPU, of dtype `T`.
#[derive(Debug)]
pub struct InPlace<'t, T> {
    start: *mut T,
    len: usize,
    tensor: PhantomData<&'t Tensor>,
}

// SAFETY: it gives slices only in an `InPlaceScope`, which gives no two that share memory; the elements
// are plain numbers.
unsafe impl<T: Element> Send for InPlace<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Element> Sync for InPlace<'_, T> {}

impl<'t, T: Element> InPlace<'t, T> {
    /// The elements of `tensor`, in row-major order.
    ///
    /// As with libtorch's operators that work in place, a graph that needs the old values notices in its
    /// backward pass.
    ///
    /// # Errors
    /// Another device or dtype, or not contiguous.
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

/// The right to change tensors, for as long as a kernel runs; see [`run_in_place`].
#[derive(Debug)]
pub struct InPlaceScope<'scope, 'env: 'scope> {
    lent: Lent,
    // As in `Scope`.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl<'scope, 'env> InPlaceScope<'scope, 'env> {
    /// The elements of `input`.
    ///
    /// # Errors
    /// A kernel changes some of them, this one or another.
    pub fn read<T: Element>(
        &'scope self,
        input: &'env Input<'_, T>,
    ) -> Result<&'scope [T], TorchError> {
        if !self.lent.read(input.start, input.len) {
            return Err(shared());
        }
        // SAFETY: `Input::new` checked start and length against a tensor that is borrowed for longer than
        // the kernel runs, so the memory lives. Until its scope ends, no kernel is given any of it to change,
        // and none has been. Nobody else writes to it: see `run_in_place`.
        Ok(unsafe { slice::from_raw_parts(input.start, input.len) })
    }

    /// The elements of `tensor`, to be changed.
    ///
    /// # Errors
    /// A kernel has some of them already, this one or another.
    // That no two of them share memory is checked when it runs, as `RefCell` does.
    #[allow(clippy::mut_from_ref)]
    pub fn write<T: Element>(
        &'scope self,
        tensor: &'env InPlace<'_, T>,
    ) -> Result<&'scope mut [T], TorchError> {
        if !self.lent.change(tensor.start, tensor.len) {
            return Err(shared());
        }
        // SAFETY: as in `read`; and no other slice of any kernel has any of this memory, or will until the
        // scope ends.
        Ok(unsafe { slice::from_raw_parts_mut(tensor.start, tensor.len) })
    }
}

fn shared() -> TorchError {
    TorchError::Memory("shares memory with another that a kernel changes".to_owned())
}

/// Runs a kernel that changes tensors in place.
///
/// What kernels are given never overlaps, unless it is read only. As with any operator of
/// libtorch, no other thread may use the tensors meanwhile, nor may the kernel use them in other ways than
/// through its scope; `tch` lets a program do so through a second handle, and no binding can see it.
pub fn run_in_place<'env, R, K>(kernel: K) -> R
where
    K: for<'scope> FnOnce(&'scope InPlaceScope<'scope, 'env>) -> R + Sync,
{
    kernel(&InPlaceScope {
        lent: Lent::default(),
        scope: PhantomData,
        env: PhantomData,
    })
}
