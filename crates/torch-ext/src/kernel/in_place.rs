use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::slice;
use std::sync::{Mutex, PoisonError};

use tch::Tensor;

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

/// Memory that slices refer to: the end of each, by its start.
#[derive(Debug, Default)]
struct Given {
    read: BTreeMap<usize, usize>,
    changed: BTreeMap<usize, usize>,
}

impl Given {
    /// Whether something in `start..end` is changed by one who has it already.
    fn is_changed(&self, start: usize, end: usize) -> bool {
        // These do not overlap each other: only the last that begins before `end` can reach so far.
        let last = self.changed.range(..end).next_back();
        last.is_some_and(|(_, &other)| other > start)
    }

    /// Whether somebody reads something in `start..end`.
    fn is_read(&self, start: usize, end: usize) -> bool {
        self.read.range(..end).any(|(_, &other)| other > start)
    }
}

/// The right to change tensors, for as long as a kernel runs; see [`run_in_place`].
#[derive(Debug)]
pub struct InPlaceScope<'scope, 'env: 'scope> {
    given: Mutex<Given>,
    // As in `Scope`.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl<'scope, 'env> InPlaceScope<'scope, 'env> {
    /// The elements of `input`.
    ///
    /// # Errors
    /// The kernel changes some of them.
    pub fn read<T: Element>(
        &'scope self,
        input: &'env Input<'_, T>,
    ) -> Result<&'scope [T], TorchError> {
        let (start, end) = bounds(input.start, input.len);
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if given.is_changed(start, end) {
            return Err(shared());
        }
        let longest = given.read.entry(start).or_default();
        *longest = end.max(*longest);
        // SAFETY: `Input::new` checked start and length against a tensor that is borrowed for longer than
        // the kernel runs, so the memory lives. `write` gives out none of it from now on, and has given
        // none of it before. Nobody else writes to it: see `run_in_place`.
        Ok(unsafe { slice::from_raw_parts(input.start, input.len) })
    }

    /// The elements of `tensor`, to be changed.
    ///
    /// # Errors
    /// The kernel has some of them already.
    // That no two of them share memory is checked when it runs, as `RefCell` does.
    #[allow(clippy::mut_from_ref)]
    pub fn write<T: Element>(
        &'scope self,
        tensor: &'env InPlace<'_, T>,
    ) -> Result<&'scope mut [T], TorchError> {
        let (start, end) = bounds(tensor.start, tensor.len);
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if given.is_changed(start, end) || given.is_read(start, end) {
            return Err(shared());
        }
        given.changed.insert(start, end);
        // SAFETY: as in `read`; and no other slice of this scope has any of this memory, or will.
        Ok(unsafe { slice::from_raw_parts_mut(tensor.start, tensor.len) })
    }
}

/// Where memory begins and ends; nothing lies between where it is empty.
fn bounds<T>(start: *const T, len: usize) -> (usize, usize) {
    let start = start.addr();
    (start, start + size_of::<T>() * len)
}

fn shared() -> TorchError {
    TorchError::Memory("shares memory with another that the same kernel changes".to_owned())
}

/// Runs a kernel that changes tensors in place.
///
/// What it is given within the kernel never overlaps, unless it is read only. As with any operator of
/// libtorch, no other thread may use the tensors meanwhile, nor may the kernel use them in other ways than
/// through its scope; `tch` lets a program do so through a second handle, and no binding can see it.
pub fn run_in_place<'env, R, K>(kernel: K) -> R
where
    K: for<'scope> FnOnce(&'scope InPlaceScope<'scope, 'env>) -> R + Sync,
{
    kernel(&InPlaceScope {
        given: Mutex::default(),
        scope: PhantomData,
        env: PhantomData,
    })
}
