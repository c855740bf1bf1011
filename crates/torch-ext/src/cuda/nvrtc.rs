//! Compilation of CUDA C++ to machine code with NVRTC, the run-time compiler.

use std::env;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use super::error::CudaError;
use super::library::{Loaded, builtins_beside, nvrtc_candidates};
use super::program::{Architecture, PRELUDE, PRELUDE_NAME, Program};
use crate::device;

type Handle = *mut c_void;
type Status = c_int;
type Text = *const c_char;

/// The functions of NVRTC that this crate uses (`nvrtc.h`; unchanged since CUDA 11.2).
struct Nvrtc {
    create_program:
        unsafe extern "C" fn(*mut Handle, Text, Text, c_int, *const Text, *const Text) -> Status,
    compile_program: unsafe extern "C" fn(Handle, c_int, *const Text) -> Status,
    destroy_program: unsafe extern "C" fn(*mut Handle) -> Status,
    log_size: unsafe extern "C" fn(Handle, *mut usize) -> Status,
    log: unsafe extern "C" fn(Handle, *mut c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Handle, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Handle, *mut c_char) -> Status,
    ptx_size: unsafe extern "C" fn(Handle, *mut usize) -> Status,
    ptx: unsafe extern "C" fn(Handle, *mut c_char) -> Status,
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    architecture_count: unsafe extern "C" fn(*mut c_int) -> Status,
    architectures: unsafe extern "C" fn(*mut c_int) -> Status,
    error_string: unsafe extern "C" fn(Status) -> Text,
    /// Keeps the library of these functions loaded.
    _library: Loaded,
}

/// A function that returns the size of some data, and a function that writes the data.
type Pair = (
    unsafe extern "C" fn(Handle, *mut usize) -> Status,
    unsafe extern "C" fn(Handle, *mut c_char) -> Status,
);

const REMEDY: &str = "install the Python package `nvidia-cuda-nvrtc` of libtorch's CUDA version beside \
                      libtorch, or name the library in IREPA_NVRTC";

fn nvrtc() -> Result<&'static Nvrtc, CudaError> {
    static NVRTC: OnceLock<Result<Nvrtc, CudaError>> = OnceLock::new();
    NVRTC
        .get_or_init(Nvrtc::load)
        .as_ref()
        .map_err(Clone::clone)
}

impl Nvrtc {
    fn load() -> Result<Self, CudaError> {
        let candidates = nvrtc_candidates(env::var_os("IREPA_NVRTC"), device::library_dir().ok());
        for candidate in &candidates {
            if let Some(builtins) = builtins_beside(Path::new(candidate)) {
                // Once loaded, NVRTC finds it by name. If it cannot be loaded, compilation reports an error.
                if let Ok(builtins) = Loaded::first("NVRTC's built-ins", [builtins.into()], REMEDY)
                {
                    std::mem::forget(builtins);
                }
                break;
            }
        }
        let library = Loaded::first("NVRTC", candidates, REMEDY)?;
        // SAFETY: the types of the fields are those of `nvrtc.h`. The library is stored with the functions in
        // a static.
        unsafe {
            Ok(Self {
                create_program: library.function("nvrtcCreateProgram")?,
                compile_program: library.function("nvrtcCompileProgram")?,
                destroy_program: library.function("nvrtcDestroyProgram")?,
                log_size: library.function("nvrtcGetProgramLogSize")?,
                log: library.function("nvrtcGetProgramLog")?,
                cubin_size: library.function("nvrtcGetCUBINSize")?,
                cubin: library.function("nvrtcGetCUBIN")?,
                ptx_size: library.function("nvrtcGetPTXSize")?,
                ptx: library.function("nvrtcGetPTX")?,
                version: library.function("nvrtcVersion")?,
                architecture_count: library.function("nvrtcGetNumSupportedArchs")?,
                architectures: library.function("nvrtcGetSupportedArchs")?,
                error_string: library.function("nvrtcGetErrorString")?,
                _library: library,
            })
        }
    }

    fn check(&self, call: &'static str, status: Status) -> Result<(), CudaError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the function returns a string literal for any status.
        let message = unsafe { CStr::from_ptr((self.error_string)(status)) };
        Err(CudaError::Call {
            call,
            message: message.to_string_lossy().into_owned(),
        })
    }

    /// Supported architectures as `10 * major + minor`, in ascending order.
    fn architectures(&self) -> Result<Vec<c_int>, CudaError> {
        let mut count = 0;
        // SAFETY: the function writes one integer.
        let status = unsafe { (self.architecture_count)(&mut count) };
        self.check("nvrtcGetNumSupportedArchs", status)?;
        let mut found = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: the function writes as many integers as it reported.
        let status = unsafe { (self.architectures)(found.as_mut_ptr()) };
        self.check("nvrtcGetSupportedArchs", status)?;
        Ok(found)
    }

    fn read(&self, call: &'static str, handle: Handle, pair: Pair) -> Result<Vec<u8>, CudaError> {
        let mut size = 0;
        // SAFETY: `handle` is a live program, and the function writes one size.
        self.check(call, unsafe { pair.0(handle, &mut size) })?;
        let mut bytes = vec![0u8; size];
        // SAFETY: as above; the function writes as many bytes as it reported.
        self.check(call, unsafe { pair.1(handle, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

/// The version of NVRTC, such as 13.0.
///
/// # Errors
/// NVRTC is missing.
pub fn compiler_version() -> Result<(i32, i32), CudaError> {
    let nvrtc = nvrtc()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the function writes two integers.
    let status = unsafe { (nvrtc.version)(&mut major, &mut minor) };
    nvrtc.check("nvrtcVersion", status)?;
    Ok((major, minor))
}

/// Compiles `program` to machine code that the driver can load: a cubin, or PTX for a device that is newer than
/// NVRTC. It needs no GPU.
///
/// # Errors
/// NVRTC is missing, or the source does not compile; that error contains the compiler's log.
pub fn compile(program: &Program, architecture: Architecture) -> Result<Vec<u8>, CudaError> {
    let nvrtc = nvrtc()?;
    let wanted = architecture.major * 10 + architecture.minor;
    let supported = nvrtc.architectures()?;
    let native = supported.contains(&wanted);
    let target = match (native, supported.iter().rfind(|&&other| other < wanted)) {
        (true, _) => format!("sm_{wanted}"),
        (false, Some(older)) => format!("compute_{older}"),
        (false, None) => format!("compute_{wanted}"),
    };
    let text = c_string(program, program.source.text)?;
    let name = c_string(program, program.source.name)?;
    let (prelude, prelude_name) = (
        c_string(program, PRELUDE)?,
        c_string(program, PRELUDE_NAME)?,
    );
    let mut handle = ptr::null_mut();
    // SAFETY: all strings are NUL-terminated and outlive the program, which is destroyed below.
    let status = unsafe {
        (nvrtc.create_program)(
            &mut handle,
            text.as_ptr(),
            name.as_ptr(),
            1,
            &prelude.as_ptr(),
            &prelude_name.as_ptr(),
        )
    };
    nvrtc.check("nvrtcCreateProgram", status)?;
    let outcome = compile_program(nvrtc, handle, program, &target, native);
    // SAFETY: a live program, destroyed once.
    unsafe { (nvrtc.destroy_program)(&mut handle) };
    outcome
}

fn compile_program(
    nvrtc: &Nvrtc,
    handle: Handle,
    program: &Program,
    target: &str,
    native: bool,
) -> Result<Vec<u8>, CudaError> {
    let fixed = [
        format!("--gpu-architecture={target}"),
        "--std=c++17".to_owned(),
    ];
    let options = fixed
        .into_iter()
        .chain(program.options())
        .map(|option| c_string(program, &option))
        .collect::<Result<Vec<CString>, _>>()?;
    let pointers: Vec<Text> = options.iter().map(|option| option.as_ptr()).collect();
    // SAFETY: `handle` is a live program; the options are NUL-terminated and outlive the call.
    let status =
        unsafe { (nvrtc.compile_program)(handle, pointers.len() as c_int, pointers.as_ptr()) };
    if status != 0 {
        let log = nvrtc.read("nvrtcGetProgramLog", handle, (nvrtc.log_size, nvrtc.log));
        let log = log.unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let log = log.trim_matches(['\0', '\n']);
        if log.is_empty() {
            nvrtc.check("nvrtcCompileProgram", status)?;
        }
        return Err(CudaError::Compile {
            program: program.to_string(),
            architecture: target.to_owned(),
            log: log.to_owned(),
        });
    }
    if native {
        nvrtc.read("nvrtcGetCUBIN", handle, (nvrtc.cubin_size, nvrtc.cubin))
    } else {
        nvrtc.read("nvrtcGetPTX", handle, (nvrtc.ptx_size, nvrtc.ptx))
    }
}

fn c_string(program: &Program, text: &str) -> Result<CString, CudaError> {
    CString::new(text).map_err(|_| CudaError::Call {
        call: "nvrtcCreateProgram",
        message: format!("{program} contains a NUL character"),
    })
}
