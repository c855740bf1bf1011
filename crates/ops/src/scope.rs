//! Access of this crate's CPU kernels to the memory of tensors.
//!
//! `tch` hands a tensor to another thread as a separate handle to the same memory. It leaves it to the program not to
//! use the memory on two threads at once, if one of them writes, for all operators of libtorch. The operations of this
//! crate need the same, and nothing more: on the calling thread, no other code runs while a kernel has access.

use torch_ext::kernel::{self, InPlaceScope, Scope};

/// [`kernel::run`] for the kernels of this crate. Their closures contain loops over slices only: they call no operator
/// of libtorch, and no code of a caller.
pub(crate) fn run<'env, R, K>(kernel: K) -> R
where
    K: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> R + Sync,
{
    // SAFETY: the functions of this crate create inputs of tensors that they hold, and run the kernel next. Between
    // the two and within the kernel, this thread runs no code that could write to the memory or free it. Other threads
    // do not write to it: see the module.
    unsafe { kernel::run(kernel) }
}

/// [`kernel::run_in_place`], as [`run`].
pub(crate) fn run_in_place<'env, R, K>(kernel: K) -> R
where
    K: for<'scope> FnOnce(&'scope InPlaceScope<'scope, 'env>) -> R + Sync,
{
    // SAFETY: as in `run`; other threads do not read the memory either.
    unsafe { kernel::run_in_place(kernel) }
}
