//! Explicit random number generators.

use std::ffi::c_int;
use std::ptr;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;
use crate::ffi::{self, RawGenerator};

/// A function of the shim that draws a tensor.
type Draw = unsafe extern "C" fn(
    *mut RawGenerator,
    *const i64,
    usize,
    c_int,
    c_int,
    *mut *mut C_tensor,
) -> c_int;

/// A random number generator of libtorch, independent of the process-wide one.
///
/// The CPU generator is Mersenne Twister 19937: a seed returns the same numbers as
/// `torch.Generator().manual_seed(seed)` in Python.
#[derive(Debug)]
pub struct Generator {
    raw: *mut RawGenerator,
    device: Device,
    slice: Option<BatchSlice>,
}

/// The part of each batch that a process draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BatchSlice {
    index: i64,
    count: i64,
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
        Ok(Self {
            raw,
            device,
            slice: None,
        })
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

    /// From now on, [`rand`](Self::rand) and [`randn`](Self::randn) draw the numbers of a batch that `count` processes
    /// share, and return those of process `index`: shape `[B, ...]` is drawn as `[count B, ...]`, of which the rows from
    /// `index B` on are returned. So all processes together have the numbers of one process with the whole batch.
    pub fn slice_batches(&mut self, index: usize, count: usize) {
        self.slice = (count > 1).then_some(BatchSlice {
            index: index as i64,
            count: count as i64,
        });
    }

    /// Uniform numbers in [0, 1) of shape `size`.
    ///
    /// # Errors
    /// A size is negative, the dtype is not floating point, or memory is exhausted.
    pub fn rand(&mut self, size: &[i64], kind: Kind) -> Result<Tensor, TorchError> {
        self.draw(ffi::te_rand, size, kind)
    }

    /// Standard normal numbers of shape `size`.
    ///
    /// # Errors
    /// As [`Self::rand`].
    pub fn randn(&mut self, size: &[i64], kind: Kind) -> Result<Tensor, TorchError> {
        self.draw(ffi::te_randn, size, kind)
    }

    fn draw(&mut self, shim: Draw, size: &[i64], kind: Kind) -> Result<Tensor, TorchError> {
        let (dtype, device) = (ffi::dtype(kind)?, ffi::device(self.device)?);
        let mut whole = size.to_vec();
        let slice = self.slice.zip(whole.first_mut());
        let rows = slice.map(|(slice, rows)| {
            let own = *rows;
            *rows *= slice.count;
            (slice.index * own, own)
        });
        let mut out = ptr::null_mut();
        // SAFETY: `shim` is one of the two functions that draw; the size lives for the call; `out` is a valid output
        // pointer.
        let status = unsafe {
            shim(
                self.raw,
                whole.as_ptr(),
                whole.len(),
                dtype,
                device,
                &mut out,
            )
        };
        let numbers = ffi::take(status, out)?;
        match rows {
            Some((start, own)) => Ok(numbers.f_narrow(0, start, own)?),
            None => Ok(numbers),
        }
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
