use std::marker::PhantomData;
use std::slice;

use half::{bf16, f16};
use tch::{Device, Kind, Tensor};

use super::lent::Lent;
use crate::TorchError;

/// Types that a tensor's elements are in memory.
///
/// # Safety
/// Any bit pattern is a value of the type, and it has the size and alignment of `KIND`'s elements.
pub unsafe trait Element: Copy + Send + Sync + 'static {
    /// The dtype.
    const KIND: Kind;
}

macro_rules! element {
    ($($type:ty => $kind:ident),*) => {
        $(
            // SAFETY: a plain number of the width that libtorch's dtype has.
            unsafe impl Element for $type {
                const KIND: Kind = Kind::$kind;
            }
        )*
    };
}

element!(f32 => Float, f64 => Double, bf16 => BFloat16, f16 => Half, i64 => Int64, u8 => Uint8);

/// A tensor that a kernel reads: contiguous, on the CPU, of dtype `T`.
#[derive(Debug)]
pub struct Input<'t, T> {
    pub(super) start: *const T,
    pub(super) len: usize,
    tensor: PhantomData<&'t Tensor>,
}

// SAFETY: it gives shared slices only, and only in a `Scope`; `T: Sync` lets threads share them.
unsafe impl<T: Sync> Send for Input<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Input<'_, T> {}

impl<'t, T: Element> Input<'t, T> {
    /// The elements of `tensor`, in row-major order.
    ///
    /// # Errors
    /// Another device or dtype, or not contiguous.
    pub fn new(tensor: &'t Tensor) -> Result<Self, TorchError> {
        let (start, len) = elements::<T>(tensor)?;
        Ok(Self {
            start,
            len,
            tensor: PhantomData,
        })
    }
}

/// A new tensor that a kernel writes; nobody else has a handle of it.
#[derive(Debug)]
pub struct Output<T> {
    tensor: Tensor,
    start: *mut T,
    len: usize,
}

impl<T: Element> Output<T> {
    /// A tensor of `size` on the CPU, with arbitrary elements.
    ///
    /// # Errors
    /// A negative size, or out of memory.
    pub fn new(size: &[i64]) -> Result<Self, TorchError> {
        let tensor = Tensor::f_empty(size, (T::KIND, Device::Cpu))?;
        let (start, len) = elements::<T>(&tensor)?;
        Ok(Self { tensor, start, len })
    }

    /// Its elements, in row-major order; arbitrary until written.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: `start` and `len` were checked by `elements`, and the memory lives as long as
        // `tensor`, the only handle there is, which `&mut self` borrows. The bytes come from an
        // allocator behind a C function that the compiler cannot see into, so they have values, if
        // arbitrary ones, and any is a valid `T`.
        unsafe { slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// The finished tensor.
    pub fn into_tensor(self) -> Tensor {
        self.tensor
    }
}

/// Start and number of the elements of `tensor`.
pub(super) fn elements<T: Element>(tensor: &Tensor) -> Result<(*mut T, usize), TorchError> {
    let refused = |reason: String| Err(TorchError::Memory(reason));
    if !tensor.defined() {
        return refused("is undefined".to_owned());
    }
    if tensor.device() != Device::Cpu || tensor.is_sparse() || tensor.is_mkldnn() {
        return refused(format!("is on {:?} or not dense", tensor.device()));
    }
    if tensor.f_kind()? != T::KIND {
        return refused(format!("is {:?}, not {:?}", tensor.f_kind()?, T::KIND));
    }
    if !tensor.is_contiguous() {
        return refused("is not contiguous".to_owned());
    }
    let len = tensor.numel();
    let start = tensor.data_ptr().cast::<T>();
    if len == 0 {
        return Ok((std::ptr::NonNull::dangling().as_ptr(), 0));
    }
    if start.is_null() || !start.is_aligned() {
        return refused("has no memory of its own, or is not aligned".to_owned());
    }
    Ok((start, len))
}

/// The right to read inputs, for as long as a kernel runs (`'scope`); the inputs were made before it
/// (`'env`).
#[derive(Debug)]
pub struct Scope<'scope, 'env: 'scope> {
    lent: Lent,
    // Invariant in both, as `std::thread::Scope` is: no slice outlives the kernel, and no input is
    // dropped within it.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// The elements of `input`.
    ///
    /// # Panics
    /// Another kernel changes some of them ([`run_in_place`](super::run_in_place)).
    pub fn read<T: Element>(&'scope self, input: &'env Input<'_, T>) -> &'scope [T] {
        let lent = self.lent.read(input.start, input.len);
        assert!(lent, "a kernel reads what another changes");
        // SAFETY: `Input::new` checked start and length against a tensor that is borrowed for longer
        // than the kernel runs, so the memory lives. Until its scope ends no kernel is given any of it to
        // change, and none has been. Nobody else writes to it: see `run`.
        unsafe { slice::from_raw_parts(input.start, input.len) }
    }
}

/// Runs a kernel, in which inputs can be read.
///
/// As with any operator of libtorch, no other thread may write to its inputs meanwhile; `tch` lets a
/// program do so through a second handle, and no binding can see it. Within the kernel itself the bound
/// `Sync` keeps tensors out, so that it cannot change in place what it reads.
pub fn run<'env, R, K>(kernel: K) -> R
where
    K: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> R + Sync,
{
    kernel(&Scope {
        lent: Lent::default(),
        scope: PhantomData,
        env: PhantomData,
    })
}
