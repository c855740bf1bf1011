use tch::{Device, Kind, TchError};
use thiserror::Error;

/// What can go wrong between Rust and libtorch.
#[derive(Debug, Error)]
pub enum TorchError {
    /// libtorch refused an operation; the text is libtorch's own, without its C++ backtrace.
    #[error("libtorch: {0}")]
    Libtorch(String),

    /// An operation of `tch` failed.
    #[error(transparent)]
    Tch(#[from] TchError),

    /// A function of one's own failed or panicked.
    #[error("autograd function `{name}`, {pass} pass: {reason}")]
    Function {
        /// Its name.
        name: &'static str,
        /// `forward` or `backward`.
        pass: &'static str,
        /// What it said.
        reason: Box<dyn std::error::Error + Send + Sync>,
    },

    /// Data that a tensor was to be made of, of another size than the tensor.
    #[error("{what} have {found} bytes instead of {expected}")]
    Bytes {
        /// What data.
        what: &'static str,
        /// Its size.
        found: usize,
        /// The tensor's.
        expected: usize,
    },

    /// A CUDA graph was to be recorded after a recording that failed.
    #[error(
        "no CUDA graph can be recorded after a recording that failed: go on without graphs, or with them in a \
         new process"
    )]
    Recording,

    /// A tensor whose memory a kernel cannot read as it is.
    #[error("a tensor {0}; kernels take contiguous tensors on the CPU, of their own dtype")]
    Memory(String),

    /// A backward pass asked for a tensor that is not there.
    #[error(
        "saved tensor {index} {}",
        if *.taken { "was already taken" } else { "does not exist: the forward pass saved fewer" }
    )]
    Saved {
        /// Number of the tensor.
        index: usize,
        /// Whether it was there, and was taken.
        taken: bool,
    },

    /// The operation takes floating-point dtypes only.
    #[error("dtype {0:?} is not one of Half, BFloat16, Float, Double")]
    Dtype(Kind),

    /// The device is neither the CPU nor a CUDA device.
    #[error("device {0:?} is not supported; use the CPU or CUDA")]
    Device(Device),

    /// Lists that must go in pairs have different lengths.
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

    /// A weight's shape cannot be initialised as asked.
    #[error("weight `{name}` of shape {shape:?} cannot be drawn as {init}")]
    Init {
        /// Full name of the weight.
        name: String,
        /// Its shape.
        shape: Vec<i64>,
        /// The initialisation asked for.
        init: String,
    },

    /// Loaded weights do not have the names that the model declares.
    #[error("{}", names_message(.missing, .unexpected))]
    Names {
        /// Declared but not given.
        missing: Vec<String>,
        /// Given but not declared, each with the nearest declared name.
        unexpected: Vec<(String, Option<String>)>,
    },

    /// A loaded weight has another shape than the model declares.
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

    /// CUDA was asked for and cannot be used.
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
