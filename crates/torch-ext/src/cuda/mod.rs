//! Custom CUDA kernels, compiled at run time: CUDA is not needed to build the binary or to start it.
//!
//! A [`Program`] is CUDA C++ with macros that adapt it to dtypes and sizes. [`Kernels::load`] compiles it
//! with NVRTC for the device's architecture, once per process. [`Kernels::launch`] runs one of its kernels
//! on the stream on which libtorch's operators run. NVRTC comes with the Python packages that libtorch's
//! CUDA wheel depends on. It is searched for beside libtorch, in the folders of those packages, and by the
//! dynamic linker; `IREPA_NVRTC` names another library. [`compile`] needs no GPU. [`Kernels::emulate`]
//! needs none either: it uses the host's compiler and CPU, for tests.
//!
//! Sources include `prelude.cuh` and write `KERNEL(name, (parameters))` for
//! `extern "C" __global__ void name(parameters)`. They are launched with [`BLOCK`] threads per block.
//!
//! A [`Graph`] queues recorded work as a whole.
//!
//! `cudarc` is not used because it panics if a library or symbol is missing, and cannot load a library from
//! a given path.

mod driver;
mod emulator;
mod error;
mod graph;
mod library;
mod nvrtc;

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, Once, PoisonError};

use tch::{Device, Tensor};

use crate::kernel::row_stride;
use crate::{TorchError, ffi};

pub use error::CudaError;
pub use graph::{Graph, set_grads};
pub use nvrtc::{compile, compiler_version};

/// Number of threads per block.
pub const BLOCK: i64 = 256;

const PRELUDE: &str = include_str!("prelude.cuh");
const PRELUDE_NAME: &str = "prelude.cuh";

/// The compute capability of a device: 8.0 is an A100, 9.0 an H100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Architecture {
    /// The number before the point.
    pub major: i32,
    /// The number after it.
    pub minor: i32,
}

/// A file of CUDA C++.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// File name, for messages.
    pub name: &'static str,
    /// Content of the file.
    pub text: &'static str,
}

/// A source and the macros that are defined for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Program {
    /// The source.
    pub source: &'static Source,
    /// Names and values of the macros.
    pub defines: Vec<(&'static str, String)>,
}

impl Program {
    fn options(&self) -> impl Iterator<Item = String> {
        self.defines
            .iter()
            .map(|(name, value)| format!("-D{name}={value}"))
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source.name)?;
        for (name, value) in &self.defines {
            write!(f, " {name}={value}")?;
        }
        Ok(())
    }
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Argument<'a> {
    /// The address of a contiguous tensor's first element.
    Tensor(&'a Tensor),
    /// The address of the first row of a tensor with contiguous rows ([`row_stride`]). The kernel also needs the
    /// distance between the rows.
    Rows(&'a Tensor),
    /// A null pointer.
    Null,
    /// An `int`.
    Int(i64),
    /// A `float`.
    Float(f64),
    /// A `double`.
    Double(f64),
}

/// The compiled kernels of a program on one device.
#[derive(Debug)]
pub struct Kernels {
    device: Device,
    code: Code,
}

#[derive(Debug)]
enum Code {
    Device(driver::Module),
    Emulated(emulator::Emulated),
}

type Cache = HashMap<(Device, Program), Result<Arc<Kernels>, CudaError>>;

impl Kernels {
    /// Compiles and loads `program` for a CUDA device. The result is cached, also if it is an error.
    ///
    /// # Errors
    /// NVRTC or the driver is missing or fails, or the source does not compile.
    pub fn load(device: Device, program: &Program) -> Result<Arc<Self>, CudaError> {
        let Device::Cuda(index) = device else {
            return Err(CudaError::Call {
                call: "Kernels::load",
                message: format!("{device:?} is not a CUDA device"),
            });
        };
        Self::cached(device, program, || {
            let primary = driver::Primary::new(index)?;
            let code = compile(program, primary.architecture)?;
            Ok(Code::Device(driver::Module::load(primary, &code)?))
        })
    }

    /// Compiles `program` with the host's C++ compiler (`CXX`, or `c++`) to run on CPU tensors, and loads it into
    /// this process. It is slow and meant for tests. As on a GPU, the order of blocks is unspecified.
    ///
    /// # Errors
    /// The compiler is missing, or the source does not compile.
    ///
    /// # Safety
    /// The source has no code that runs when it is loaded (such as constructors of global variables) and violates
    /// memory safety.
    pub unsafe fn emulate(program: &Program) -> Result<Arc<Self>, CudaError> {
        Self::cached(Device::Cpu, program, || {
            Ok(Code::Emulated(emulator::Emulated::compile(program)?))
        })
    }

    fn cached(
        device: Device,
        program: &Program,
        make: impl FnOnce() -> Result<Code, CudaError>,
    ) -> Result<Arc<Self>, CudaError> {
        static CACHE: Mutex<Option<Cache>> = Mutex::new(None);
        // The lock is held during compilation: other threads would only compile the same program again.
        let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        cache
            .get_or_insert_default()
            .entry((device, program.clone()))
            .or_insert_with(|| {
                Ok(Arc::new(Self {
                    device,
                    code: make()?,
                }))
            })
            .clone()
    }

    /// The device of the kernels and their tensors.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Number of blocks that run on the device at once, with two per multiprocessor as the prelude requests.
    pub fn resident_blocks(&self) -> i64 {
        match &self.code {
            Code::Device(module) => 2 * i64::from(module.multiprocessors()),
            Code::Emulated(_) => 3,
        }
    }

    /// Queues kernel `name` on the current stream of the device, with `arguments` in the order of its
    /// parameters.
    ///
    /// A mistake in the arguments or in the source corrupts memory of the device, or causes an error in a later
    /// call; emulated kernels run on memory of this process.
    ///
    /// # Errors
    /// A tensor is undefined, on another device or not contiguous; a number is out of range; the kernel does
    /// not exist; the launch fails.
    ///
    /// # Safety
    /// - `arguments` have the number and the types of the kernel's parameters: a tensor of the dtype that a
    ///   pointer points to, or null where the kernel accepts it, and otherwise a number of the parameter's type.
    /// - With these arguments and this number of blocks, the kernel stays within the tensors. Tensors that it
    ///   writes share no memory with each other or with tensors that it reads, except where the kernel allows it.
    /// - No tensor that it writes is in use on another stream or, if the kernel is emulated, on another thread.
    pub unsafe fn launch(
        &self,
        name: &str,
        blocks: i64,
        arguments: &[Argument<'_>],
    ) -> Result<(), TorchError> {
        let refused = |reason: String| CudaError::Argument {
            kernel: name.to_owned(),
            reason,
        };
        let blocks = u32::try_from(blocks)
            .ok()
            .filter(|blocks| (1..1 << 31).contains(blocks))
            .ok_or_else(|| refused(format!("{blocks} blocks")))?;
        let mut values = arguments
            .iter()
            .map(|argument| self.value(argument))
            .collect::<Result<Vec<Value>, String>>()
            .map_err(refused)?;
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(Value::address).collect();
        match &self.code {
            Code::Device(module) => {
                let name = CString::new(name).unwrap_or_default();
                let stream = current_stream(self.device)?;
                // SAFETY: the pointers refer to `values`, which outlive the call. The stream is libtorch's,
                // on this device. By contract the values are those that the kernel expects; the tensors are
                // on this device. The allocator reuses memory in stream order, so a tensor may be dropped
                // before the kernel has run.
                unsafe { module.launch(&name, blocks, BLOCK as u32, stream, &mut pointers)? };
            }
            Code::Emulated(library) => {
                // SAFETY: as above, but the values are host addresses of tensors that are borrowed until the
                // kernel has ended.
                unsafe { library.launch(name, blocks, BLOCK as u32, &mut pointers)? };
            }
        }
        Ok(())
    }

    fn value(&self, argument: &Argument<'_>) -> Result<Value, String> {
        Ok(match *argument {
            Argument::Tensor(tensor) | Argument::Rows(tensor) => {
                if !tensor.defined() || tensor.device() != self.device || tensor.is_sparse() {
                    return Err(format!("a tensor is not dense or not on {:?}", self.device));
                }
                let by_rows = matches!(argument, Argument::Rows(_)) && row_stride(tensor).is_some();
                if !by_rows && !tensor.is_contiguous() {
                    return Err(format!("a tensor {:?} is not contiguous", tensor.size()));
                }
                Value::Pointer(tensor.data_ptr())
            }
            Argument::Null => Value::Pointer(ptr::null_mut()),
            Argument::Int(value) => Value::Int(
                i32::try_from(value).map_err(|_| format!("{value} does not fit an `int`"))?,
            ),
            Argument::Float(value) => Value::Float(value as f32),
            Argument::Double(value) => Value::Double(value),
        })
    }
}

/// The stream on which this thread's operators run on a CUDA device (a `cudaStream_t`).
fn current_stream(device: Device) -> Result<*mut c_void, TorchError> {
    let mut stream = ptr::null_mut();
    // SAFETY: `stream` is valid for writes.
    ffi::check(unsafe { ffi::te_current_stream(ffi::device(device)?, &mut stream) })?;
    Ok(stream)
}

/// An argument in its memory representation.
enum Value {
    Pointer(*mut c_void),
    Int(i32),
    Float(f32),
    Double(f64),
}

impl Value {
    fn address(&mut self) -> *mut c_void {
        match self {
            Self::Pointer(value) => ptr::from_mut(value).cast(),
            Self::Int(value) => ptr::from_mut(value).cast(),
            Self::Float(value) => ptr::from_mut(value).cast(),
            Self::Double(value) => ptr::from_mut(value).cast(),
        }
    }
}

/// [`Kernels::load`] for callers that have a fallback. The first failure in a process is logged as a warning.
pub fn usable(device: Device, program: &Program) -> Option<Arc<Kernels>> {
    static WARNED: Once = Once::new();
    match Kernels::load(device, program) {
        Ok(kernels) => Some(kernels),
        Err(error) => {
            WARNED.call_once(|| {
                tracing::warn!(
                    "fused operations on {device:?} fall back to libtorch operators: {error}"
                );
            });
            None
        }
    }
}

/// `tensor` in a form that kernels can read: contiguous, and aligned for 16-byte loads. Returns a copy if
/// `tensor` is not.
///
/// # Errors
/// Memory is exhausted.
pub fn readable(tensor: &Tensor) -> Result<Tensor, TorchError> {
    let tensor = tensor.f_contiguous()?;
    if tensor.data_ptr().addr().is_multiple_of(16) {
        return Ok(tensor);
    }
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(&tensor)?;
    Ok(copy)
}

/// The layout of a program's tokens in registers, which the prelude's macros describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    width: i64,
    vector: i64,
    warps: i64,
}

impl Layout {
    /// A layout for tokens of `width` numbers of at most `bytes` bytes each, of which a thread holds at most
    /// `limit`. `None` if tokens are too wide.
    pub fn new(width: i64, bytes: i64, limit: i64) -> Option<Self> {
        let vector = [16 / bytes, 4, 2, 1]
            .into_iter()
            .find(|&vector| vector * bytes <= 16 && width % vector == 0)?;
        let held = |warps: i64| (width / vector + 32 * warps - 1) / (32 * warps) * vector;
        let warps = [1, 2, 4, 8]
            .into_iter()
            .find(|&warps| held(warps) <= limit)?;
        (width > 0).then_some(Self {
            width,
            vector,
            warps,
        })
    }

    /// Number of tokens that a block processes at once.
    pub fn tokens(&self) -> i64 {
        BLOCK / (32 * self.warps)
    }

    /// Number of numbers that a thread reads at once.
    pub fn vector(&self) -> i64 {
        self.vector
    }

    /// Definitions of the prelude's macros.
    pub fn defines(&self) -> Vec<(&'static str, String)> {
        let Self {
            width,
            vector,
            warps,
        } = self;
        [("WIDTH", width), ("VEC", vector), ("WARPS", warps)]
            .map(|(name, value)| (name, value.to_string()))
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_cuda_there_is_no_current_stream() {
        assert!(matches!(
            current_stream(Device::Cuda(0)),
            Err(TorchError::Libtorch(_))
        ));
        assert!(current_stream(Device::Mps).is_err());
    }

    mod needs_cuda {
        use super::*;

        #[test]
        #[ignore = "needs a CUDA device: `cargo xtask test --cuda`"]
        fn the_current_stream_is_the_default_one() {
            crate::device::load_cuda().unwrap();
            // The handle of the default stream is null.
            assert!(current_stream(Device::Cuda(0)).unwrap().is_null());
        }
    }
}
