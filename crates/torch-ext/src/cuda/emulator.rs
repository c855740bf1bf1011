//! Emulation of CUDA kernels on the CPU, compiled by the host's C++ compiler, to test their arithmetic
//! without a GPU.

use std::env;
use std::ffi::{c_int, c_uint, c_void};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::CudaError;
use super::library::Loaded;
use super::program::{PRELUDE, PRELUDE_NAME, Program};

const HEADER: &str = include_str!("emulator.h");

type Entry = unsafe extern "C" fn(*mut *mut c_void);
type Emulate = unsafe extern "C" fn(Entry, c_uint, c_uint, *mut *mut c_void) -> c_int;

/// A program, compiled to a shared library for the host.
#[derive(Debug)]
pub(super) struct Emulated {
    library: Loaded,
    emulate: Emulate,
}

impl Emulated {
    pub(super) fn compile(program: &Program) -> Result<Self, CudaError> {
        let folder = Folder::new()?;
        let unit = format!(
            "#include \"emulator.h\"\n#include \"{}\"\n",
            program.source.name
        );
        for (name, text) in [
            ("emulator.h", HEADER),
            (PRELUDE_NAME, PRELUDE),
            (program.source.name, program.source.text),
            ("unit.cpp", &unit),
        ] {
            fs::write(folder.0.join(name), text).map_err(|error| failed(error.to_string()))?;
        }
        let library = folder.0.join("kernels.so");
        let compiler = env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let output = Command::new(compiler)
            .args([
                "-std=c++17",
                "-O1",
                "-pthread",
                "-fPIC",
                "-shared",
                "-fvisibility=hidden",
                "-w",
            ])
            .args(program.options())
            .arg(folder.0.join("unit.cpp"))
            .arg("-o")
            .arg(&library)
            .output()
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(CudaError::Compile {
                program: program.to_string(),
                architecture: "the host".to_owned(),
                log: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        let library = Loaded::first("the emulated kernels", [library.into()], "see the reason")?;
        // SAFETY: the type is that of `emulator.h`; the function is stored with its library.
        let emulate = unsafe { library.function("emulate")? };
        Ok(Self { library, emulate })
    }

    /// The kernel `name`.
    pub(super) fn function(&'static self, name: &str) -> Result<Function, CudaError> {
        // SAFETY: the macro `KERNEL` defines an entry of this type for every kernel. The library is never dropped.
        let entry = unsafe { self.library.function(&format!("emulated_{name}"))? };
        Ok(Function {
            entry,
            emulate: self.emulate,
        })
    }
}

/// A kernel of a loaded library.
#[derive(Debug)]
pub(super) struct Function {
    entry: Entry,
    emulate: Emulate,
}

impl Function {
    /// Runs the kernel, which messages call `name`.
    ///
    /// # Safety
    /// As [`super::driver::Function::launch`], for host memory.
    pub(super) unsafe fn launch(
        &self,
        name: &str,
        blocks: u32,
        threads: u32,
        arguments: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        match unsafe { (self.emulate)(self.entry, blocks, threads, arguments.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(failed(format!(
                "in `{name}`, some threads never reach a barrier"
            ))),
        }
    }
}

fn failed(message: String) -> CudaError {
    CudaError::Call {
        call: "emulation",
        message,
    }
}

/// A temporary folder, deleted on drop. A loaded library may be deleted.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, CudaError> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("torch-ext-kernels-{}-{count}", std::process::id());
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).map_err(|error| failed(error.to_string()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _left_behind = fs::remove_dir_all(&self.0);
    }
}
