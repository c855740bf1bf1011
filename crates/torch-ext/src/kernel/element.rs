//! Elements of tensors as Rust types.

use half::{bf16, f16};
use tch::{Device, Kind, Tensor};

use crate::TorchError;

/// Rust types of tensor elements.
///
/// # Safety
/// Any bit pattern is a valid value of the type, and the type has the size and alignment of `KIND`'s
/// elements.
pub unsafe trait Element: Copy + Send + Sync + 'static {
    /// The dtype.
    const KIND: Kind;
}

macro_rules! element {
    ($($type:ty => $kind:ident),*) => {
        $(
            // SAFETY: a plain number of the same size as libtorch's dtype.
            unsafe impl Element for $type {
                const KIND: Kind = Kind::$kind;
            }
        )*
    };
}

element!(f32 => Float, f64 => Double, bf16 => BFloat16, f16 => Half, i64 => Int64, u8 => Uint8);

/// Checks that `tensor` has memory of its own on the CPU, with elements of type `T`.
pub(super) fn check_dense<T: Element>(tensor: &Tensor) -> Result<(), TorchError> {
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
    Ok(())
}

/// Address of the first of `len` elements of a dense tensor; any aligned address if there are none.
pub(super) fn first_element<T>(tensor: &Tensor, len: usize) -> Result<*mut T, TorchError> {
    if len == 0 {
        return Ok(std::ptr::NonNull::dangling().as_ptr());
    }
    let start = tensor.data_ptr().cast::<T>();
    if start.is_null() || !start.is_aligned() {
        let reason = "has no memory, or its memory is not aligned";
        return Err(TorchError::Memory(reason.to_owned()));
    }
    Ok(start)
}
