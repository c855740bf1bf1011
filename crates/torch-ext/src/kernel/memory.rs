//! Tensor memory as slices: inputs that kernels read, and new tensors that they write.

use std::marker::PhantomData;
use std::slice;

use tch::{Device, Tensor};

use super::borrows::Borrows;
use super::element::{Element, check_dense, first_element};
use super::rows::{InputRows, Rows};
use crate::TorchError;

/// A tensor that a kernel reads: contiguous, on the CPU, of dtype `T`.
#[derive(Debug)]
pub struct Input<'t, T> {
    pub(super) start: *const T,
    pub(super) len: usize,
    tensor: PhantomData<&'t Tensor>,
}

// SAFETY: only a scope creates slices from it, and only shared ones; `T: Sync` lets threads share them.
unsafe impl<T: Sync> Send for Input<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Input<'_, T> {}

impl<'t, T: Element> Input<'t, T> {
    /// Gives kernels read access to `tensor`; its elements are in row-major order.
    ///
    /// # Errors
    /// The tensor is on another device, has another dtype, or is not contiguous.
    pub fn new(tensor: &'t Tensor) -> Result<Self, TorchError> {
        let (start, len) = elements::<T>(tensor)?;
        Ok(Self {
            start,
            len,
            tensor: PhantomData,
        })
    }
}

/// A new tensor that a kernel writes, and that has no other handle.
#[derive(Debug)]
pub struct Output<T> {
    tensor: Tensor,
    start: *mut T,
    len: usize,
}

impl<T: Element> Output<T> {
    /// A tensor of `size` on the CPU with arbitrary elements.
    ///
    /// # Errors
    /// A size is negative, or memory is exhausted.
    pub fn new(size: &[i64]) -> Result<Self, TorchError> {
        let tensor = Tensor::f_empty(size, (T::KIND, Device::Cpu))?;
        let (start, len) = elements::<T>(&tensor)?;
        Ok(Self { tensor, start, len })
    }

    /// The elements, in row-major order; arbitrary until written.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: `start` and `len` were checked by `elements`. The memory lives as long as `tensor`,
        // the only handle, which `&mut self` borrows. The bytes come from an allocator behind a C
        // function that is opaque to the compiler, so they have arbitrary but initialised values, and
        // every value is a valid `T`.
        unsafe { slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// The finished tensor.
    pub fn into_tensor(self) -> Tensor {
        self.tensor
    }
}

/// Address of the first element of `tensor`, and the number of elements.
pub(super) fn elements<T: Element>(tensor: &Tensor) -> Result<(*mut T, usize), TorchError> {
    check_dense::<T>(tensor)?;
    if !tensor.is_contiguous() {
        return Err(TorchError::Memory("is not contiguous".to_owned()));
    }
    let len = tensor.numel();
    Ok((first_element(tensor, len)?, len))
}

/// Access to inputs while a kernel runs (`'scope`). The inputs exist before the kernel and outlive it
/// (`'env`).
#[derive(Debug)]
pub struct Scope<'scope, 'env: 'scope> {
    borrows: Borrows,
    // Invariant in both lifetimes, like `std::thread::Scope`: no slice outlives the kernel, and no input
    // is dropped within it.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// The elements of `input`.
    ///
    /// # Panics
    /// Another kernel has write access to some of them ([`run_in_place`](super::run_in_place)).
    pub fn read<T: Element>(&'scope self, input: &'env Input<'_, T>) -> &'scope [T] {
        // SAFETY: `Input::new` checked start and length against a tensor that is borrowed for longer
        // than the kernel runs.
        unsafe { self.lend(input.start, input.len) }
    }

    /// The rows of `input`.
    ///
    /// # Panics
    /// Another kernel has write access to some of them, or to memory between them.
    pub fn read_rows<T: Element>(&'scope self, input: &'env InputRows<'_, T>) -> Rows<'scope, T> {
        // SAFETY: `InputRows::new` checked start and length against a tensor that is borrowed for longer than the
        // kernel runs.
        input.rows(unsafe { self.lend(input.start, input.len) })
    }

    /// # Safety
    /// `len` elements at `start` belong to the memory of an input.
    unsafe fn lend<T: Element>(&'scope self, start: *const T, len: usize) -> &'scope [T] {
        assert!(
            self.borrows.borrow(start, len),
            "a kernel reads memory that another kernel changes"
        );
        // SAFETY: by contract, the memory belongs to an input. `borrow` ensures that no kernel has write access to any
        // of it until the scope ends. By the contract of `run`, the memory lives and no other code writes to it.
        unsafe { slice::from_raw_parts(start, len) }
    }
}

/// Runs a kernel that reads inputs.
///
/// Kernels that change tensors are tracked ([`run_in_place`](super::run_in_place)), but libtorch's operators are
/// not: they write through any handle to the memory of an input, and a handle can be reached from any code, for
/// example through a `Mutex<Tensor>` or a thread-local variable. The function is therefore unsafe. A kernel that
/// calls no code of its caller and no operator, between [`Input::new`] and its end, can only be disturbed by another
/// thread.
///
/// # Safety
/// From the creation of each input that the kernel reads until the kernel ends, on this thread and on others:
///
/// - the memory of the input is not freed, for example by resizing the tensor or replacing its data;
/// - while the kernel runs, nothing writes to it except through an [`InPlace`](super::InPlace). The memory of an
///   [`InputRows`] includes that between its rows.
///
/// # A tensor behind a lock
/// Safe code cannot read a tensor as a slice while it changes the same tensor through a lock, although the closure may
/// share the lock with other threads:
///
/// ```compile_fail,E0133
/// use std::sync::Mutex;
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::kernel::{self, Input};
///
/// let x = Tensor::zeros([4], (Kind::Float, Device::Cpu));
/// let (handle, input) = (Mutex::new(x.shallow_clone()), Input::<f32>::new(&x).unwrap());
/// kernel::run(|scope| {
///     let slice = scope.read(&input);
///     let _changed = handle.lock().unwrap().fill_(1.0);
///     slice[0]
/// });
/// ```
///
/// A closure that captures a tensor without a lock does not compile in any case, since a tensor is not `Sync`:
///
/// ```compile_fail,E0277
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::kernel::{self, Input};
///
/// let x = Tensor::zeros([4], (Kind::Float, Device::Cpu));
/// let input = Input::<f32>::new(&x).unwrap();
/// // SAFETY: the call does not compile.
/// unsafe { kernel::run(|scope| scope.read(&input).len() + x.numel()) };
/// ```
pub unsafe fn run<'env, R, K>(kernel: K) -> R
where
    K: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> R + Sync,
{
    kernel(&Scope {
        borrows: Borrows::default(),
        scope: PhantomData,
        env: PhantomData,
    })
}
