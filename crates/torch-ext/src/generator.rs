//! Explicit random number generators.

use std::ptr;

use tch::{Device, Kind, Tensor};

use crate::TorchError;
use crate::ffi::{self, RawGenerator};

/// A random number generator of libtorch, independent of the process-wide one.
///
/// The CPU generator is Mersenne Twister 19937: a seed returns the same numbers as
/// `torch.Generator().manual_seed(seed)` in Python.
#[derive(Debug)]
pub struct Generator {
    raw: *mut RawGenerator,
    device: Device,
}

// SAFETY: the shim locks the generator's mutex, or calls operators that do. The generator is not tied to
// the thread that created it.
unsafe impl Send for Generator {}

impl Generator {
    /// A generator on `device`, seeded with `seed`.
    ///
    /// # Errors
    /// The device is neither the CPU nor CUDA, or CUDA is not loaded ([`crate::device::resolve`]).
    pub fn new(device: Device, seed: u64) -> Result<Self, TorchError> {
        let number = ffi::device(device)?;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is a valid output pointer; see `ffi.rs` for the rest.
        ffi::check(unsafe { ffi::te_generator_new(number, seed, &mut raw) })?;
        Ok(Self { raw, device })
    }

    /// The device on which numbers are drawn.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Restarts the generator with `seed`.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn manual_seed(&mut self, seed: u64) -> Result<(), TorchError> {
        // SAFETY: `self.raw` is live until drop.
        ffi::check(unsafe { ffi::te_generator_seed(self.raw, seed) })
    }

    /// The state as a byte tensor on the CPU, which can be saved and passed to [`Self::set_state`].
    ///
    /// # Errors
    /// libtorch failed.
    pub fn state(&self) -> Result<Tensor, TorchError> {
        let mut out = ptr::null_mut();
        // SAFETY: `self.raw` is live; `out` is a valid output pointer.
        let status = unsafe { ffi::te_generator_state(self.raw, &mut out) };
        ffi::take(status, out)
    }

    /// Continues from a saved state.
    ///
    /// # Errors
    /// The tensor is not a state of a generator for this type of device.
    pub fn set_state(&mut self, state: &Tensor) -> Result<(), TorchError> {
        // SAFETY: both pointers are live for the call.
        ffi::check(unsafe { ffi::te_generator_set_state(self.raw, state.as_ptr()) })
    }

    /// Uniform numbers in [0, 1) of shape `size`.
    ///
    /// # Errors
    /// A size is negative, the dtype is not floating point, or memory is exhausted.
    pub fn rand(&mut self, size: &[i64], kind: Kind) -> Result<Tensor, TorchError> {
        let (dtype, device) = (ffi::dtype(kind)?, ffi::device(self.device)?);
        let mut out = ptr::null_mut();
        // SAFETY: `size` is live for the call; `out` is a valid output pointer.
        let status =
            unsafe { ffi::te_rand(self.raw, size.as_ptr(), size.len(), dtype, device, &mut out) };
        ffi::take(status, out)
    }

    /// Standard normal numbers of shape `size`.
    ///
    /// # Errors
    /// As [`Self::rand`].
    pub fn randn(&mut self, size: &[i64], kind: Kind) -> Result<Tensor, TorchError> {
        let (dtype, device) = (ffi::dtype(kind)?, ffi::device(self.device)?);
        let mut out = ptr::null_mut();
        // SAFETY: as in `rand`.
        let status =
            unsafe { ffi::te_randn(self.raw, size.as_ptr(), size.len(), dtype, device, &mut out) };
        ffi::take(status, out)
    }

    /// Fills `tensor` with uniform numbers in [`low`, `high`), without recording a gradient.
    ///
    /// # Errors
    /// `low > high`, the tensor is on another device, or its dtype is not floating point.
    pub fn uniform_(&mut self, tensor: &mut Tensor, low: f64, high: f64) -> Result<(), TorchError> {
        // SAFETY: both pointers are live for the call.
        ffi::check(unsafe { ffi::te_uniform_(self.raw, tensor.as_ptr(), low, high) })
    }

    /// Fills `tensor` with normal numbers, without recording a gradient.
    ///
    /// # Errors
    /// `std` is negative, the tensor is on another device, or its dtype is not floating point.
    pub fn normal_(&mut self, tensor: &mut Tensor, mean: f64, std: f64) -> Result<(), TorchError> {
        // SAFETY: both pointers are live for the call.
        ffi::check(unsafe { ffi::te_normal_(self.raw, tensor.as_ptr(), mean, std) })
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        // SAFETY: created by `te_generator_new`, freed once.
        unsafe { ffi::te_generator_free(self.raw) }
    }
}
