//! Compiled programs, and the kernels in them.

use std::cell::Cell;
use std::sync::Once;

use tch::Device;

use super::driver;
use super::emulator;
use super::error::CudaError;
use super::kernel::{Function, Kernel};
use super::nvrtc::compile;
use super::program::Program;
use crate::OnceMap;

thread_local! {
    static RESOLUTIONS: Cell<u64> = const { Cell::new(0) };
}

/// Number of programs and kernels that this thread has looked up so far. Looking one up compares and copies texts; an
/// operation that keeps its kernels looks up none when it is repeated.
pub fn resolutions() -> u64 {
    RESOLUTIONS.get()
}

fn count_resolution() {
    RESOLUTIONS.set(RESOLUTIONS.get() + 1);
}

/// The compiled kernels of a program on one device. They stay loaded until the process ends.
#[derive(Debug)]
pub struct Kernels {
    device: Device,
    program: Program,
    code: Code,
}

#[derive(Debug)]
enum Code {
    Device(driver::Module),
    Emulated(emulator::Emulated),
}

impl Kernels {
    /// Compiles and loads `program` for a CUDA device, once per process. An error is kept as well. Programs that
    /// several threads load are compiled at the same time.
    ///
    /// # Errors
    /// NVRTC or the driver is missing or fails, or the source does not compile.
    pub fn load(device: Device, program: &Program) -> Result<&'static Self, CudaError> {
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
    pub unsafe fn emulate(program: &Program) -> Result<&'static Self, CudaError> {
        Self::cached(Device::Cpu, program, || {
            Ok(Code::Emulated(emulator::Emulated::compile(program)?))
        })
    }

    fn cached(
        device: Device,
        program: &Program,
        make: impl FnOnce() -> Result<Code, CudaError>,
    ) -> Result<&'static Self, CudaError> {
        static LOADED: OnceMap<(Device, Program), Result<Kernels, CudaError>> = OnceMap::new();
        count_resolution();
        let loaded = LOADED.get_or_make((device, program.clone()), || {
            Ok(Self {
                device,
                program: program.clone(),
                code: make()?,
            })
        });
        loaded.as_ref().map_err(Clone::clone)
    }

    /// The kernel `name` of the program. Keep it: finding it takes longer than launching it.
    ///
    /// # Errors
    /// The source has no such kernel, or one with a parameter that [`Argument`](super::Argument) has no type for.
    pub fn kernel(&'static self, name: &'static str) -> Result<Kernel, CudaError> {
        count_resolution();
        let function = match &self.code {
            Code::Device(module) => Function::Device(module.function(name)?),
            Code::Emulated(library) => Function::Emulated(library.function(name)?),
        };
        Kernel::new(&self.program, name, self.device, function)
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
}

/// Kernels that were `loaded` for `device`, for callers that have a fallback. The first failure in a process is logged
/// as a warning.
pub fn usable<T>(device: Device, loaded: Result<T, CudaError>) -> Option<T> {
    static WARNED: Once = Once::new();
    loaded
        .inspect_err(|error| {
            WARNED.call_once(|| {
                tracing::warn!(
                    "fused operations on {device:?} fall back to libtorch operators: {error}"
                );
            });
        })
        .ok()
}
