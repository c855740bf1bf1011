//! Keys and values that all processes see.

use std::ffi::{CString, c_void};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Once;
use std::time::Duration;

use super::World;
use crate::TorchError;
use crate::ffi::{self, RawStore};

/// Keys and values of all processes (c10d's `TCPStore`). Rank 0 serves it, unless torchrun's agent does.
///
/// Its functions may be called from several threads.
#[derive(Debug)]
pub struct Store {
    raw: NonNull<RawStore>,
    world: World,
}

// SAFETY: a `TCPStore` locks its connection in each operation, and `PrefixStore` has no state besides the prefix.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Connects to the store of `world`; rank 0 first starts it. Operations that wait for another process fail after
    /// `timeout`.
    ///
    /// From the first call on, libtorch writes no messages to standard error, because c10d would repeat each error there
    /// with the C++ frames of its origin. `TORCH_CPP_LOG_LEVEL` (`INFO`, `WARNING`, `ERROR`, `FATAL`) sets another level.
    ///
    /// # Errors
    /// The port is in use; the address does not answer within `timeout`.
    pub fn connect(world: &World, timeout: Duration) -> Result<Self, TorchError> {
        static LOGGING: Once = Once::new();
        // SAFETY: sets the level of messages, a number that other threads may read meanwhile: they write a message more or
        // less. The environment is not changed by this program.
        LOGGING.call_once(|| unsafe { ffi::te_init_logging() });
        let (host, prefix) = (c_string(&world.address)?, c_string(&world.prefix)?);
        let serves = world.rank == 0 && !world.agent_serves;
        let mut out = ptr::null_mut();
        // SAFETY: the strings live for the call; `out` is valid for writes.
        let status = unsafe {
            ffi::te_store_connect(
                host.as_ptr(),
                world.port,
                i32::from(serves),
                milliseconds(timeout),
                prefix.as_ptr(),
                &mut out,
            )
        };
        let operation = || match serves {
            true => format!("serving the store at {}:{}", world.address, world.port),
            false => format!("connecting to {}:{}", world.address, world.port),
        };
        Ok(Self {
            raw: world.take(operation, status, out)?,
            world: world.clone(),
        })
    }

    pub(super) fn raw(&self) -> *mut RawStore {
        self.raw.as_ptr()
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// The key contains a NUL; the store does not answer.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), TorchError> {
        let name = c_string(key)?;
        // SAFETY: the store is alive; key and value live for the call, which copies them.
        let status =
            unsafe { ffi::te_store_set(self.raw(), name.as_ptr(), value.as_ptr(), value.len()) };
        self.check(|| format!("setting `{key}` in the store"), status)
    }

    /// Returns the value of a key. Waits until some process has set it.
    ///
    /// # Errors
    /// No process set the key within the store's timeout; the store does not answer.
    pub fn get(&self, key: &str) -> Result<Vec<u8>, TorchError> {
        unsafe extern "C" fn receive(receiver: *mut c_void, bytes: *const u8, length: usize) {
            if length > 0 {
                // SAFETY: `receiver` is the `&mut Vec<u8>` below, and `bytes` has `length` bytes during this call.
                let (receiver, bytes) = unsafe {
                    (
                        &mut *receiver.cast::<Vec<u8>>(),
                        slice::from_raw_parts(bytes, length),
                    )
                };
                receiver.extend_from_slice(bytes);
            }
        }
        let name = c_string(key)?;
        let mut value = Vec::<u8>::new();
        // SAFETY: the store is alive; the key lives for the call, in which `receive` is called at most once, with
        // `value`.
        let status = unsafe {
            ffi::te_store_get(
                self.raw(),
                name.as_ptr(),
                ptr::from_mut(&mut value).cast(),
                receive,
            )
        };
        self.check(|| format!("waiting for `{key}` in the store"), status)?;
        Ok(value)
    }

    /// Whether a key has a value.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn contains(&self, key: &str) -> Result<bool, TorchError> {
        let name = c_string(key)?;
        let mut found = 0;
        // SAFETY: the store is alive; the key lives for the call; `found` is valid for writes.
        let status = unsafe { ffi::te_store_check(self.raw(), name.as_ptr(), &mut found) };
        self.check(|| format!("looking for `{key}` in the store"), status)?;
        Ok(found != 0)
    }

    /// Adds to the number of a key, which starts at 0, and returns the sum. No two processes get the same sum of
    /// positive numbers, so it serves as a queue of tickets.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn add(&self, key: &str, value: i64) -> Result<i64, TorchError> {
        let name = c_string(key)?;
        let mut sum = 0;
        // SAFETY: as in `contains`.
        let status = unsafe { ffi::te_store_add(self.raw(), name.as_ptr(), value, &mut sum) };
        self.check(|| format!("adding to `{key}` in the store"), status)?;
        Ok(sum)
    }

    fn check(&self, operation: impl FnOnce() -> String, status: i32) -> Result<(), TorchError> {
        self.world.check(operation, status)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: `te_store_connect` made it, and nothing uses it after this. Groups hold their own reference.
        unsafe { ffi::te_store_free(self.raw()) };
    }
}

pub(super) fn c_string(text: &str) -> Result<CString, TorchError> {
    CString::new(text).map_err(|_| TorchError::Libtorch(format!("{text:?} contains a NUL")))
}

/// A timeout for c10d, at least 1 ms.
pub(super) fn milliseconds(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_millis()).map_or(u64::MAX >> 1, |ms| ms.clamp(1, u64::MAX >> 1))
}
