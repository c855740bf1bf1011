//! Mixed precision: inside a region, libtorch runs matrix products and attention in a lower
//! precision and keeps the rest in float32 (`torch.autocast`).
//!
//! The setting applies to the calling thread. The backward pass runs outside the region and uses the
//! dtypes that the forward pass recorded. Casts of weights are cached until the outermost region ends,
//! so a region must not span an optimiser step.
//!
//! ```
//! use tch::{Device, Kind, Tensor};
//! use torch_ext::autocast;
//!
//! # fn main() -> Result<(), torch_ext::TorchError> {
//! let x = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
//! let y = autocast::run(Device::Cpu, Some(Kind::BFloat16), || x.matmul(&x))?;
//! assert_eq!(y.kind(), Kind::BFloat16);
//! assert_eq!(x.matmul(&x).kind(), Kind::Float);
//! # Ok(())
//! # }
//! ```

use std::ffi::c_int;
use std::marker::PhantomData;

use tch::{Device, Kind};

use crate::TorchError;
use crate::ffi;

/// An open autocast region, which ends when the guard is dropped.
#[derive(Debug)]
pub struct Guard {
    device: c_int,
    previous_enabled: c_int,
    previous_dtype: c_int,
    // The setting is thread-local: the guard must be dropped on the thread that created it.
    _not_send: PhantomData<*const ()>,
}

/// Opens a region in which operators on `device` compute in `kind` (`BFloat16` or `Half`).
///
/// # Errors
/// `kind` is not a floating-point dtype, or the device has no autocast.
pub fn enter(device: Device, kind: Kind) -> Result<Guard, TorchError> {
    let device = ffi::device(device)?;
    let (mut previous_enabled, mut previous_dtype) = (0, 0);
    // SAFETY: both outputs are valid for writes.
    ffi::check(unsafe {
        ffi::te_autocast_enter(
            device,
            ffi::dtype(kind)?,
            &mut previous_enabled,
            &mut previous_dtype,
        )
    })?;
    Ok(Guard {
        device,
        previous_enabled,
        previous_dtype,
        _not_send: PhantomData,
    })
}

/// Runs `body` in a region of dtype `kind`, or without autocast if `kind` is `None`.
///
/// # Errors
/// As [`enter`].
pub fn run<T>(
    device: Device,
    kind: Option<Kind>,
    body: impl FnOnce() -> T,
) -> Result<T, TorchError> {
    let _guard = kind.map(|kind| enter(device, kind)).transpose()?;
    Ok(body())
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: plain numbers. A failure leaves nothing to undo, and cannot be reported here.
        unsafe {
            ffi::te_autocast_leave(self.device, self.previous_enabled, self.previous_dtype);
        }
    }
}
