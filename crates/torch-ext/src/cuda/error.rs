use thiserror::Error;

/// Why a CUDA kernel could not be compiled, loaded or launched.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CudaError {
    /// NVRTC or the driver could not be opened.
    #[error("cannot load {library}: {reason}; {remedy}")]
    Library {
        /// Which library.
        library: &'static str,
        /// What was tried, and what the dynamic linker said.
        reason: String,
        /// The way out.
        remedy: &'static str,
    },

    /// A source does not compile.
    #[error("{program} does not compile for {architecture}:\n{log}")]
    Compile {
        /// Name of the source, and what was defined for it.
        program: String,
        /// What it was compiled for, such as `sm_90`.
        architecture: String,
        /// The compiler's log.
        log: String,
    },

    /// A call of NVRTC or of the driver failed.
    #[error("{call}: {message}")]
    Call {
        /// The function.
        call: &'static str,
        /// What the library says of its status.
        message: String,
    },

    /// A kernel was given what it cannot take.
    #[error("kernel `{kernel}`: {reason}")]
    Argument {
        /// Name of the kernel.
        kernel: String,
        /// What is wrong.
        reason: String,
    },
}
