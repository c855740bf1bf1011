//! The functions of the CUDA driver that this crate uses, on the primary contexts that libtorch uses too.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::ptr;
use std::sync::OnceLock;

use super::error::CudaError;
use super::library::Loaded;
use super::program::Architecture;

type Status = c_int;
type Context = *mut c_void;

/// `CU_DEVICE_ATTRIBUTE_*`.
const MULTIPROCESSORS: c_int = 16;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

struct Driver {
    device_get: unsafe extern "C" fn(*mut c_int, c_int) -> Status,
    device_attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Status,
    retain_primary: unsafe extern "C" fn(*mut Context, c_int) -> Status,
    push_context: unsafe extern "C" fn(Context) -> Status,
    pop_context: unsafe extern "C" fn(*mut Context) -> Status,
    module_load: unsafe extern "C" fn(*mut *mut c_void, *const c_void) -> Status,
    module_function: unsafe extern "C" fn(*mut *mut c_void, *mut c_void, *const c_char) -> Status,
    #[allow(clippy::type_complexity)]
    launch: unsafe extern "C" fn(
        *mut c_void,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        *mut c_void,
        *mut *mut c_void,
        *mut *mut c_void,
    ) -> Status,
    error_string: unsafe extern "C" fn(Status, *mut *const c_char) -> Status,
    /// Keeps the library of these functions loaded.
    _library: Loaded,
}

fn driver() -> Result<&'static Driver, CudaError> {
    static DRIVER: OnceLock<Result<Driver, CudaError>> = OnceLock::new();
    DRIVER
        .get_or_init(Driver::load)
        .as_ref()
        .map_err(Clone::clone)
}

impl Driver {
    fn load() -> Result<Self, CudaError> {
        let candidates = ["libcuda.so.1", "libcuda.so"].map(OsString::from);
        let remedy = "install NVIDIA's driver";
        let library = Loaded::first("the CUDA driver", candidates, remedy)?;
        // SAFETY: the types are those of `cuda.h`, in the versions that the suffixes name. The library is
        // stored with the functions in a static.
        let driver = unsafe {
            Self {
                device_get: library.function("cuDeviceGet")?,
                device_attribute: library.function("cuDeviceGetAttribute")?,
                retain_primary: library.function("cuDevicePrimaryCtxRetain")?,
                push_context: library.function("cuCtxPushCurrent_v2")?,
                pop_context: library.function("cuCtxPopCurrent_v2")?,
                module_load: library.function("cuModuleLoadData")?,
                module_function: library.function("cuModuleGetFunction")?,
                launch: library.function("cuLaunchKernel")?,
                error_string: library.function("cuGetErrorString")?,
                _library: library,
            }
        };
        // SAFETY: the type is that of `cuda.h`.
        let init: unsafe extern "C" fn(c_uint) -> Status =
            unsafe { driver._library.function("cuInit")? };
        // SAFETY: 0 is the only allowed argument; repeated calls are allowed.
        driver.check("cuInit", unsafe { init(0) })?;
        Ok(driver)
    }

    fn check(&self, call: &'static str, status: Status) -> Result<(), CudaError> {
        if status == 0 {
            return Ok(());
        }
        let mut text = ptr::null();
        // SAFETY: the function writes the address of a string literal, or null for an unknown status.
        unsafe { (self.error_string)(status, &mut text) };
        let message = if text.is_null() {
            format!("error {status}")
        } else {
            // SAFETY: a string literal of the driver.
            unsafe { CStr::from_ptr(text) }
                .to_string_lossy()
                .into_owned()
        };
        Err(CudaError::Call { call, message })
    }
}

/// A device with its primary context.
#[derive(Debug, Clone, Copy)]
pub(super) struct Primary {
    context: Context,
    pub(super) architecture: Architecture,
    pub(super) multiprocessors: u32,
}

// SAFETY: a context may be made current on any thread; it is retained and never released.
unsafe impl Send for Primary {}
// SAFETY: as above.
unsafe impl Sync for Primary {}

impl Primary {
    /// Device number `index` in libtorch's numbering.
    pub(super) fn new(index: usize) -> Result<Self, CudaError> {
        let driver = driver()?;
        let mut device = 0;
        // SAFETY: the function writes one integer.
        let status = unsafe { (driver.device_get)(&mut device, index as c_int) };
        driver.check("cuDeviceGet", status)?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: the function writes one integer; `device` comes from the driver.
            let status = unsafe { (driver.device_attribute)(&mut value, which, device) };
            driver.check("cuDeviceGetAttribute", status).map(|()| value)
        };
        let architecture = Architecture {
            major: attribute(CAPABILITY_MAJOR)?,
            minor: attribute(CAPABILITY_MINOR)?,
        };
        let multiprocessors = attribute(MULTIPROCESSORS)?.max(1) as u32;
        let mut context = ptr::null_mut();
        // SAFETY: the function writes one handle. libtorch's runtime uses the primary context too.
        let status = unsafe { (driver.retain_primary)(&mut context, device) };
        driver.check("cuDevicePrimaryCtxRetain", status)?;
        Ok(Self {
            context,
            architecture,
            multiprocessors,
        })
    }

    /// Calls `body` with this context current on this thread, and restores the previous context.
    fn within<T>(
        &self,
        driver: &Driver,
        body: impl FnOnce() -> Result<T, CudaError>,
    ) -> Result<T, CudaError> {
        // SAFETY: a live context.
        driver.check("cuCtxPushCurrent", unsafe {
            (driver.push_context)(self.context)
        })?;
        let outcome = body();
        let mut popped = ptr::null_mut();
        // SAFETY: the function writes the handle of the context that was pushed above.
        let status = unsafe { (driver.pop_context)(&mut popped) };
        driver.check("cuCtxPopCurrent", status)?;
        outcome
    }
}

/// Machine code that stays loaded on a device until the process ends.
#[derive(Debug)]
pub(super) struct Module {
    primary: Primary,
    handle: *mut c_void,
}

// SAFETY: the driver's functions on modules may be called from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads machine code from [`super::compile`].
    pub(super) fn load(primary: Primary, code: &[u8]) -> Result<Self, CudaError> {
        let driver = driver()?;
        // PTX must end with NUL. NVRTC's already does, a second one is harmless, and a cubin needs none.
        let code = [code, &[0]].concat();
        let mut handle = ptr::null_mut();
        primary.within(driver, || {
            // SAFETY: `code` is a complete cubin, whose header states its length, or NUL-terminated PTX. The
            // driver copies it.
            let status = unsafe { (driver.module_load)(&mut handle, code.as_ptr().cast()) };
            driver.check("cuModuleLoadData", status)
        })?;
        Ok(Self { primary, handle })
    }

    pub(super) fn multiprocessors(&self) -> u32 {
        self.primary.multiprocessors
    }

    /// The kernel `name`.
    pub(super) fn function(&self, name: &str) -> Result<Function, CudaError> {
        let driver = driver()?;
        let name = CString::new(name).unwrap_or_default();
        let mut handle = ptr::null_mut();
        self.primary.within(driver, || {
            // SAFETY: a loaded module, and a NUL-terminated name.
            let status =
                unsafe { (driver.module_function)(&mut handle, self.handle, name.as_ptr()) };
            driver.check("cuModuleGetFunction", status)
        })?;
        Ok(Function {
            driver,
            primary: self.primary,
            handle,
        })
    }
}

/// A kernel of a loaded module.
pub(super) struct Function {
    driver: &'static Driver,
    primary: Primary,
    handle: *mut c_void,
}

// SAFETY: as for the module, which stays loaded.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Function").field(&self.handle).finish()
    }
}

impl Function {
    /// Queues the kernel with `blocks` blocks on `stream`.
    ///
    /// # Safety
    /// `arguments` point to values in the order and with the types of the kernel's parameters. `stream`
    /// belongs to the device, or is null for its default stream. With these values, the kernel accesses only memory
    /// that it may.
    pub(super) unsafe fn launch(
        &self,
        blocks: u32,
        threads: u32,
        stream: *mut c_void,
        arguments: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        self.primary.within(self.driver, || {
            // SAFETY: the caller's promise; the driver copies the arguments during the call.
            let status = unsafe {
                (self.driver.launch)(
                    self.handle,
                    blocks,
                    1,
                    1,
                    threads,
                    1,
                    1,
                    0,
                    stream,
                    arguments.as_mut_ptr(),
                    ptr::null_mut(),
                )
            };
            self.driver.check("cuLaunchKernel", status)
        })
    }
}
