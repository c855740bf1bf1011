//! Errors of CUDA kernels.

use thiserror::Error;

/// Why a CUDA kernel could not be compiled, loaded or launched.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CudaError {
    /// NVRTC or the driver could not be opened.
    #[error("cannot load {library}: {reason}; {remedy}")]
    Library {
        /// Which library.
        library: &'static str,
        /// The dynamic linker's messages for each candidate.
        reason: String,
        /// What to do about it.
        remedy: &'static str,
    },

    /// The source does not compile.
    #[error("{program} does not compile for {architecture}:\n{log}")]
    Compile {
        /// Name of the source and its macros.
        program: String,
        /// The target of the compilation, such as `sm_90`.
        architecture: String,
        /// The compiler's log.
        log: String,
    },

    /// A call of NVRTC or of the driver failed.
    #[error("{call}: {message}")]
    Call {
        /// The function.
        call: &'static str,
        /// The library's description of the status.
        message: String,
    },

    /// A kernel received an invalid argument.
    #[error("kernel `{kernel}`: {reason}")]
    Argument {
        /// Name of the kernel.
        kernel: String,
        /// What is wrong.
        reason: String,
    },
}
