use tch::{Device, Kind, TchError};
use thiserror::Error;

/// An error of this crate or of libtorch.
#[derive(Debug, Error)]
pub enum TorchError {
    /// An operation of libtorch failed. The text is libtorch's, without the C++ backtrace.
    #[error("libtorch: {0}")]
    Libtorch(String),

    /// An operation of `tch` failed.
    #[error(transparent)]
    Tch(#[from] TchError),

    /// A custom autograd function failed or panicked.
    #[error("autograd function `{name}`, {pass} pass: {reason}")]
    Function {
        /// Name of the function.
        name: &'static str,
        /// `forward` or `backward`.
        pass: &'static str,
        /// The function's error, or the text of its panic.
        reason: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The data for a tensor does not have the size of the tensor.
    #[error("{what} have {found} bytes instead of {expected}")]
    Bytes {
        /// Which data.
        what: &'static str,
        /// Size of the data.
        found: usize,
        /// Size of the tensor.
        expected: usize,
    },

    /// A CUDA graph cannot be recorded because an earlier recording in this process failed.
    #[error(
        "no CUDA graph can be recorded after a failed recording: continue without graphs, or start a new process \
         to use them"
    )]
    Recording,

    /// The shape of a tensor is not one that the operation takes.
    #[error("shape of {what} is {found:?}, must be {expected}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// Its shape.
        found: Vec<i64>,
        /// The shapes that the operation takes.
        expected: &'static str,
    },

    /// A kernel cannot access the memory of a tensor directly.
    #[error("a tensor {0}; kernels take contiguous CPU tensors of the dtype they expect")]
    Memory(String),

    /// A backward pass requested a saved tensor that does not exist.
    #[error(
        "saved tensor {index} {}",
        if *.taken { "was already taken" } else { "does not exist: the forward pass saved fewer" }
    )]
    Saved {
        /// Index of the tensor.
        index: usize,
        /// Whether the tensor was saved and has been taken.
        taken: bool,
    },

    /// The operation takes floating-point dtypes only.
    #[error("dtype {0:?} is not one of Half, BFloat16, Float, Double")]
    Dtype(Kind),

    /// The device is neither the CPU nor a CUDA device.
    #[error("device {0:?} is not supported; use the CPU or CUDA")]
    Device(Device),

    /// Lists that are processed in pairs have different lengths.
    #[error("{what}: {left} tensors against {right}")]
    Length {
        /// The operation.
        what: &'static str,
        /// Length of the first list.
        left: usize,
        /// Length of the other list.
        right: usize,
    },

    /// The same weight was declared twice.
    #[error("weight `{0}` is declared twice")]
    DuplicateName(String),

    /// A weight's shape does not suit the requested initialisation.
    #[error("weight `{name}` of shape {shape:?} cannot be initialised with {init}")]
    Init {
        /// Full name of the weight.
        name: String,
        /// Its shape.
        shape: Vec<i64>,
        /// The requested initialisation.
        init: String,
    },

    /// The names of the loaded weights differ from those that the model declares.
    #[error("{}", names_message(.missing, .unexpected))]
    Names {
        /// Declared by the model but not loaded.
        missing: Vec<String>,
        /// Loaded but not declared, each with the most similar declared name.
        unexpected: Vec<(String, Option<String>)>,
    },

    /// The shape of a loaded weight differs from the shape that the model declares.
    #[error("weight `{name}` has shape {found:?}, the model declares {declared:?}")]
    LoadShape {
        /// Full name of the weight.
        name: String,
        /// Shape in the file.
        found: Vec<i64>,
        /// Shape in the model.
        declared: Vec<i64>,
    },

    /// A CUDA kernel could not be compiled, loaded or launched.
    #[error(transparent)]
    Kernel(#[from] crate::cuda::CudaError),

    /// Processes cannot be connected with NCCL on this machine.
    #[error(transparent)]
    Nccl(#[from] crate::distributed::NcclError),

    /// An operation of several processes failed on this one: another process ended or did not answer in time, or
    /// libtorch failed.
    #[error("{operation} on rank {rank} of {size}: {reason}")]
    Distributed {
        /// What this process was doing.
        operation: String,
        /// Rank of this process.
        rank: usize,
        /// Number of processes.
        size: usize,
        /// What libtorch says.
        reason: String,
    },

    /// CUDA was requested but is not usable.
    #[error("CUDA is not available: {0}")]
    Cuda(String),
}

fn names_message(missing: &[String], unexpected: &[(String, Option<String>)]) -> String {
    const SHOWN: usize = 5;
    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(format!(
            "{} missing: {}{}",
            missing.len(),
            missing[..missing.len().min(SHOWN)].join(", "),
            if missing.len() > SHOWN { ", ..." } else { "" }
        ));
    }
    if !unexpected.is_empty() {
        let names: Vec<String> = unexpected
            .iter()
            .take(SHOWN)
            .map(|(name, nearest)| match nearest {
                Some(nearest) => format!("{name} (nearest: {nearest})"),
                None => name.clone(),
            })
            .collect();
        parts.push(format!(
            "{} unexpected: {}{}",
            unexpected.len(),
            names.join(", "),
            if unexpected.len() > SHOWN {
                ", ..."
            } else {
                ""
            }
        ));
    }
    format!("weights do not match the model: {}", parts.join("; "))
}
