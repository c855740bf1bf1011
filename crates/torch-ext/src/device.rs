//! Devices: CUDA loaded at run time, memory statistics, process-wide switches.
//!
//! The binary links only libtorch's CPU library. [`load_cuda`] opens `libtorch_cuda.so` in the folder
//! that libtorch was loaded from, if the file exists.

use std::ffi::{CStr, c_char};
use std::path::PathBuf;
use std::sync::OnceLock;

use tch::{Cuda, Device};

use crate::TorchError;
use crate::ffi;

/// Loads libtorch's CUDA library, once per process.
///
/// # Errors
/// The library or one of its dependencies is missing (the lean set-up does not install them), or no
/// CUDA device is usable.
pub fn load_cuda() -> Result<(), TorchError> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            // SAFETY: loading runs libtorch_cuda's initialisers, which register kernels under
            // libtorch's own locks; `OnceLock` runs this once.
            ffi::check(unsafe { ffi::te_load_cuda() }).map_err(|error| error.to_string())?;
            if Cuda::is_available() {
                Ok(())
            } else {
                Err("libtorch_cuda.so is loaded, but it finds no CUDA device or driver".into())
            }
        })
        .clone()
        .map_err(TorchError::Cuda)
}

/// Parses a device name: `auto`, `cpu`, `cuda` or `cuda:N`. `auto` is CUDA if it is usable, otherwise the
/// CPU.
///
/// # Errors
/// The name is unknown, CUDA is not usable, or the device does not exist.
pub fn resolve(name: &str) -> Result<Device, TorchError> {
    let index = match name {
        "cpu" => return Ok(Device::Cpu),
        "auto" => {
            return Ok(if load_cuda().is_ok() {
                Device::Cuda(0)
            } else {
                Device::Cpu
            });
        }
        "cuda" => 0,
        other => other
            .strip_prefix("cuda:")
            .and_then(|index| index.parse::<usize>().ok())
            .ok_or_else(|| {
                TorchError::Cuda(format!(
                    "`{other}` is not a device; use auto, cpu, cuda or cuda:N"
                ))
            })?,
    };
    load_cuda()?;
    let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
    if index < count {
        Ok(Device::Cuda(index))
    } else {
        Err(TorchError::Cuda(format!(
            "device {index} does not exist: there are {count}, counted from 0"
        )))
    }
}

/// The folder that libtorch was loaded from.
///
/// # Errors
/// The dynamic linker does not report a folder.
pub fn library_dir() -> Result<PathBuf, TorchError> {
    let mut buffer: [c_char; 4096] = [0; 4096];
    // SAFETY: the shim writes at most `len` bytes and ends them with NUL.
    ffi::check(unsafe { ffi::te_library_dir(buffer.as_mut_ptr(), buffer.len()) })?;
    // SAFETY: NUL-terminated by the shim, or all zeroes.
    let path = unsafe { CStr::from_ptr(buffer.as_ptr()) };
    Ok(PathBuf::from(path.to_string_lossy().into_owned()))
}

/// The version of libtorch that this crate was compiled against, such as `2.11.0`.
pub fn torch_version() -> String {
    // SAFETY: a string literal of the shim.
    unsafe { CStr::from_ptr(ffi::te_torch_version()) }
        .to_string_lossy()
        .into_owned()
}

/// Peak memory use in bytes since the process started or since [`reset_peak_memory`]: the allocator's
/// statistics on CUDA, the resident set of the whole process on the CPU (Linux).
///
/// `None` if the system does not report it.
///
/// # Errors
/// The device has no allocator statistics.
pub fn peak_memory(device: Device) -> Result<Option<u64>, TorchError> {
    if device == Device::Cpu {
        return Ok(peak_resident());
    }
    let mut bytes = 0;
    // SAFETY: `bytes` is valid for writes.
    ffi::check(unsafe { ffi::te_peak_memory(ffi::device(device)?, &mut bytes) })?;
    Ok(Some(bytes))
}

/// Resets [`peak_memory`]. On the CPU, freed memory is first returned to the system, so that it does not count.
/// Returns whether the system allows the reset: on the CPU, not every kernel or container does.
///
/// # Errors
/// The device has no allocator statistics.
pub fn reset_peak_memory(device: Device) -> Result<bool, TorchError> {
    if device == Device::Cpu {
        // SAFETY: the allocator locks itself.
        unsafe { ffi::te_give_back_freed_memory() };
        // On Linux, writing 5 resets the peak resident set.
        return Ok(std::fs::write("/proc/self/clear_refs", "5").is_ok());
    }
    // SAFETY: plain number.
    ffi::check(unsafe { ffi::te_reset_peak_memory(ffi::device(device)?) })?;
    Ok(true)
}

/// Memory available for tensors, in bytes. On CUDA: the free memory of the device plus the unused memory of the
/// allocator. On the CPU: the memory available without swapping, within the limits of this process's control
/// group.
///
/// `None` if the system does not report it.
///
/// # Errors
/// The device has no allocator statistics.
pub fn free_memory(device: Device) -> Result<Option<u64>, TorchError> {
    if device == Device::Cpu {
        return Ok(free_memory_of_system());
    }
    let mut bytes = 0;
    // SAFETY: `bytes` is valid for writes.
    ffi::check(unsafe { ffi::te_free_memory(ffi::device(device)?, &mut bytes) })?;
    Ok(Some(bytes))
}

/// Memory in bytes that the allocator has taken from a CUDA device, whether or not tensors use it.
///
/// # Errors
/// The device has no allocator statistics, as the CPU.
pub fn reserved_memory(device: Device) -> Result<u64, TorchError> {
    let mut bytes = 0;
    // SAFETY: `bytes` is valid for writes.
    ffi::check(unsafe { ffi::te_reserved_memory(ffi::device(device)?, &mut bytes) })?;
    Ok(bytes)
}

/// Returns the allocator's unused memory to the device; does nothing on the CPU.
///
/// # Errors
/// The device has no such allocator.
pub fn empty_cache(device: Device) -> Result<(), TorchError> {
    if device == Device::Cpu {
        return Ok(());
    }
    // SAFETY: plain number.
    ffi::check(unsafe { ffi::te_empty_cache(ffi::device(device)?) })
}

/// Waits until all work queued on the device is done; does nothing on the CPU.
///
/// # Errors
/// The device failed, possibly in earlier work.
pub fn synchronize(device: Device) -> Result<(), TorchError> {
    if device == Device::Cpu {
        return Ok(());
    }
    // SAFETY: plain number.
    ffi::check(unsafe { ffi::te_synchronize(ffi::device(device)?) })
}

/// Makes the C library keep the memory of freed CPU tensors for reuse, up to 2 GiB, instead of
/// returning it to the system. This avoids most page faults of a training step. Call it before the
/// first tensor is created. Returns whether the C library accepts the setting; glibc does.
pub fn keep_freed_memory() -> bool {
    // SAFETY: sets parameters of the allocator, which locks itself.
    unsafe { ffi::te_keep_freed_memory() == 1 }
}

/// Sets whether float32 matrix products and convolutions on CUDA may round their inputs to TF32. The setting is
/// process-wide.
///
/// # Errors
/// libtorch failed.
pub fn set_tf32(enabled: bool) -> Result<(), TorchError> {
    let enabled = i32::from(enabled);
    // SAFETY: plain numbers.
    ffi::check(unsafe { ffi::te_set_tf32(enabled, enabled) })
}

/// Whether matrix products and convolutions on CUDA, in this order, may round their inputs to TF32.
///
/// # Errors
/// libtorch failed.
pub fn tf32() -> Result<(bool, bool), TorchError> {
    let (mut products, mut convolutions) = (0, 0);
    // SAFETY: both are valid for writes.
    ffi::check(unsafe { ffi::te_tf32(&mut products, &mut convolutions) })?;
    Ok((products != 0, convolutions != 0))
}

/// A guard that disables TF32 and restores the previous setting when it is dropped. The setting is process-wide:
/// work that other threads queue meanwhile does not use TF32 either.
#[derive(Debug)]
pub struct Float32 {
    before: (bool, bool),
}

impl Float32 {
    /// Disables TF32.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn enter() -> Result<Self, TorchError> {
        let before = tf32()?;
        set_tf32(false)?;
        Ok(Self { before })
    }
}

impl Drop for Float32 {
    fn drop(&mut self) {
        let (products, convolutions) = self.before;
        // SAFETY: plain numbers. A failure cannot be reported here.
        let _status = unsafe { ffi::te_set_tf32(products.into(), convolutions.into()) };
    }
}

/// Sets whether libtorch uses deterministic operators and rejects operators that have no deterministic form. The
/// setting is process-wide.
///
/// # Errors
/// libtorch failed.
pub fn set_deterministic(enabled: bool) -> Result<(), TorchError> {
    // SAFETY: plain number.
    ffi::check(unsafe { ffi::te_set_deterministic(i32::from(enabled)) })
}

/// Whether [`set_deterministic`] is enabled.
///
/// # Errors
/// libtorch failed.
pub fn deterministic() -> Result<bool, TorchError> {
    let mut enabled = 0;
    // SAFETY: `enabled` is valid for writes.
    ffi::check(unsafe { ffi::te_deterministic(&mut enabled) })?;
    Ok(enabled != 0)
}

fn free_memory_of_system() -> Option<u64> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let available = system.available_memory();
    let limit = system.cgroup_limits().map(|limits| limits.free_memory);
    let free = limit.map_or(available, |limit| limit.min(available));
    (free > 0).then_some(free)
}

fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
