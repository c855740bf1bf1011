//! CUDA kernels of one's own, compiled at run time: nothing of CUDA is needed to build or to start.
//!
//! A [`Program`] is CUDA C++ with macros that adapt it to dtypes and sizes. [`Kernels::load`] compiles it
//! with NVRTC for the device's architecture, once a process, and [`Kernels::launch`] runs one of its
//! kernels on the stream that libtorch's operators run on. NVRTC comes with the Python packages that
//! libtorch's CUDA wheel depends on, and is looked for beside libtorch, in those packages' folder, and by
//! the dynamic linker; `IREPA_NVRTC` names another one. [`compile`] alone needs no GPU, and
//! [`Kernels::emulate`] none either: there the host's compiler and CPU stand in, for tests.
//!
//! Sources write `KERNEL(name, (parameters))` for `extern "C" __global__ void name(parameters)`, include
//! `prelude.cuh`, and are launched with [`BLOCK`] threads a block.
//!
//! A [`Graph`] queues recorded work as a whole.
//!
//! Why not `cudarc`: it ends the process with a panic where a library or symbol is missing, and takes no
//! path to one.

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

use crate::{TorchError, ffi};

pub use error::CudaError;
pub use graph::{Graph, set_grads};
pub use nvrtc::{compile, compiler_version};

/// Threads of a block.
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
    /// Its file name, for messages.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// A source and the macros that are defined for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Program {
    /// The source.
    pub source: &'static Source,
    /// Names and values.
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

/// What a kernel is given, in the order of its parameters.
#[derive(Debug, Clone, Copy)]
pub enum Argument<'a> {
    /// The address of a contiguous tensor's first element.
    Tensor(&'a Tensor),
    /// A null pointer.
    Null,
    /// An `int`.
    Int(i64),
    /// A `float`.
    Float(f64),
    /// A `double`.
    Double(f64),
}

/// Machine code of a program, on one device.
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
    /// Compiles and loads `program` for a CUDA device. What came of it is kept, success or failure.
    ///
    /// # Errors
    /// NVRTC or the driver is not there or fails, or the source does not compile.
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

    /// Compiles `program` with the host's C++ compiler (`CXX`, or `c++`), to be run on CPU tensors, slowly,
    /// by tests. Blocks run in an order of their own, as on a GPU.
    ///
    /// # Errors
    /// There is no such compiler, or it does not take the source.
    pub fn emulate(program: &Program) -> Result<Arc<Self>, CudaError> {
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
        // Held while it compiles: whoever else wants the program would only compile it again.
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

    /// Where its tensors are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Blocks that the device works on at once, if two fit on a multiprocessor, as the prelude asks for.
    pub fn resident_blocks(&self) -> i64 {
        match &self.code {
            Code::Device(module) => 2 * i64::from(module.multiprocessors()),
            Code::Emulated(_) => 3,
        }
    }

    /// Puts kernel `name` onto the current stream of the device.
    ///
    /// As with libtorch's own kernels, it is the source's affair to stay within the tensors, and the
    /// caller's to give what the kernel's parameters ask for; a mistake damages memory of the device, or
    /// fails as an error of a later call.
    ///
    /// # Errors
    /// A tensor that is undefined, on another device, or not contiguous; a number out of range; no such
    /// kernel; the launch fails.
    pub fn launch(
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
                // SAFETY: the pointers are to `values`, which outlive the call. The stream is libtorch's,
                // on this device. That the values are what the kernel's parameters ask for is a matter
                // of the sources of this project, which are compiled into it like its C++; they are
                // addresses of the device, so that no memory of Rust's is at stake. The allocator frees
                // in the order of the stream, so a tensor may be dropped before the kernel has run.
                unsafe { module.launch(&name, blocks, BLOCK as u32, stream, &mut pointers)? };
            }
            Code::Emulated(library) => {
                // SAFETY: as above, but for addresses on the host, of tensors that are borrowed until
                // the kernel has ended. Only tests emulate.
                unsafe { library.launch(name, blocks, BLOCK as u32, &mut pointers)? };
            }
        }
        Ok(())
    }

    fn value(&self, argument: &Argument<'_>) -> Result<Value, String> {
        Ok(match *argument {
            Argument::Tensor(tensor) => {
                if !tensor.defined() || tensor.device() != self.device || tensor.is_sparse() {
                    return Err(format!("a tensor is not dense or not on {:?}", self.device));
                }
                if !tensor.is_contiguous() {
                    return Err(format!("a tensor {:?} is not contiguous", tensor.size()));
                }
                Value::Pointer(tensor.data_ptr())
            }
            Argument::Null => Value::Pointer(ptr::null_mut()),
            Argument::Int(value) => {
                Value::Int(i32::try_from(value).map_err(|_| format!("{value} is no `int`"))?)
            }
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

/// An argument as it lies in memory.
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

/// [`Kernels::load`] for those who can do without: the first failure of a process is logged.
pub fn usable(device: Device, program: &Program) -> Option<Arc<Kernels>> {
    static WARNED: Once = Once::new();
    match Kernels::load(device, program) {
        Ok(kernels) => Some(kernels),
        Err(error) => {
            WARNED.call_once(|| {
                tracing::warn!(
                    "fused operations on {device:?} are composed of libtorch's: {error}"
                );
            });
            None
        }
    }
}

/// `tensor` as a kernel can read it: contiguous, and beginning where a 16-byte load may. A copy if it is
/// not so.
///
/// # Errors
/// Out of memory.
pub fn readable(tensor: &Tensor) -> Result<Tensor, TorchError> {
    let tensor = tensor.f_contiguous()?;
    if tensor.data_ptr().addr().is_multiple_of(16) {
        return Ok(tensor);
    }
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(&tensor)?;
    Ok(copy)
}

/// How the tokens of a program lie in registers, as the prelude wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    width: i64,
    vector: i64,
    warps: i64,
}

impl Layout {
    /// For tokens of `width` numbers, the widest of which takes `bytes` bytes, of which a thread holds at
    /// most `limit`. `None` for tokens that are too wide.
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

    /// Tokens that a block works on at once.
    pub fn tokens(&self) -> i64 {
        BLOCK / (32 * self.warps)
    }

    /// Numbers that are read at once.
    pub fn vector(&self) -> i64 {
        self.vector
    }

    /// The prelude's macros.
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
            // Its handle is null.
            assert!(current_stream(Device::Cuda(0)).unwrap().is_null());
        }
    }
}
