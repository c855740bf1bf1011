//! Errors of loading and running encoders.

use std::io;
use std::path::PathBuf;

use tch::TchError;
use thiserror::Error;
use torch_ext::TorchError;

use crate::Precision;
use crate::classic::ClassicError;

/// Why an encoder could not be loaded or run.
#[derive(Debug, Error)]
pub enum EncoderError {
    /// No encoder has that name.
    #[error("unknown encoder `{name}`{}", did_you_mean(.nearest))]
    Unknown {
        /// The requested name.
        name: String,
        /// The most similar known names.
        nearest: Vec<String>,
    },

    /// The encoder is known, but its file is not installed.
    #[error("encoder {name} is not installed: searched for {}.pt in {}; {hint}", .name, folders(.searched))]
    Missing {
        /// The encoder.
        name: String,
        /// How to get the file.
        hint: String,
        /// The folders that were searched.
        searched: Vec<PathBuf>,
    },

    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },

    /// A TorchScript file has no sidecar that describes it.
    #[error("{} has no sidecar {}; export the encoder again, or write a sidecar (see the crate's documentation)", file.display(), sidecar.display())]
    NoSidecar {
        /// The TorchScript file.
        file: PathBuf,
        /// The missing sidecar.
        sidecar: PathBuf,
    },

    /// The sidecar is invalid; the message contains line and key.
    #[error("{}: {message}", path.display())]
    Sidecar {
        /// The sidecar.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },

    /// The file is not the one that the sidecar describes.
    #[error("{} is damaged or not the file that its sidecar describes: its SHA-256 is {found}, the sidecar has {expected}; export or fetch it again", path.display())]
    Checksum {
        /// The TorchScript file.
        path: PathBuf,
        /// SHA-256 of the file, hexadecimal.
        found: String,
        /// SHA-256 that the sidecar declares.
        expected: String,
    },

    /// libtorch cannot load the file.
    #[error("{} is not a TorchScript file that this libtorch can load: {message}", path.display())]
    NotTorchScript {
        /// The file.
        path: PathBuf,
        /// The error of libtorch.
        message: String,
    },

    /// The weights cannot be cast.
    #[error("{} cannot be cast to {}: {message}; try float32", path.display(), precision.name())]
    Cast {
        /// The file.
        path: PathBuf,
        /// The requested precision.
        precision: Precision,
        /// The error of libtorch.
        message: String,
    },

    /// The encoder does not support images of this size.
    #[error("encoder {name} does not support images of {resolution} pixels, only of {}", sides(.allowed))]
    Resolution {
        /// The encoder.
        name: String,
        /// Side of the images in pixels.
        resolution: i64,
        /// Sides that it can be exported for.
        allowed: Vec<i64>,
    },

    /// The module ran, but the shape of an output differs from the one that the sidecar declares.
    #[error(
        "encoder {name}: the shape of {what} is {found:?}, but the sidecar declares {declared:?}"
    )]
    Shape {
        /// The encoder.
        name: String,
        /// Name of the output.
        what: &'static str,
        /// Its shape.
        found: Vec<i64>,
        /// The declared shape.
        declared: Vec<i64>,
    },

    /// The network failed while it ran, for example because it ran out of memory.
    #[error("{name} failed on a batch of images: {reason}")]
    Failed {
        /// The encoder, or Inception.
        name: String,
        /// The network's error message.
        reason: String,
    },

    /// The module did not return tokens.
    #[error(
        "encoder {name} does not return patch tokens, or a pair of patch tokens and class token: {found}"
    )]
    Output {
        /// The encoder.
        name: String,
        /// What it returned, or why it failed.
        found: String,
    },

    /// The module did not return the three kinds of features.
    #[error("{name} does not return pooled features, spatial features and logits: {found}")]
    InceptionOutput {
        /// The network.
        name: String,
        /// What it returned, or why it failed.
        found: String,
    },

    /// The module's output differs from the values that Python recorded when it wrote the file.
    #[error(
        "{name}: {what} differ by {difference:.1e} from the values that Python computed; export it again"
    )]
    ReferenceMismatch {
        /// The network.
        name: String,
        /// Name of the output.
        what: &'static str,
        /// Largest difference, relative to the largest value.
        difference: f64,
    },

    /// Outputs are NaN or infinite.
    #[error("encoder {name}: NaN or infinite values in {what} for a test image")]
    NotFinite {
        /// The encoder.
        name: String,
        /// Name of the output.
        what: &'static str,
    },

    /// A second pass over the same images returns different tokens.
    #[error(
        "encoder {name} returns different tokens in a second pass over the same images, by {difference:.1e} of the \
         largest value: dropout or another random operation is still active; export it in evaluation mode \
         (`module.eval()`)"
    )]
    NotRepeatable {
        /// The encoder.
        name: String,
        /// Largest difference, relative to the largest value.
        difference: f64,
    },

    /// The tokens of an image depend on the other images of the batch.
    #[error(
        "encoder {name} returns tokens that depend on the other images of the batch, by {difference:.1e} of the \
         largest value: a batch norm is still in training mode, or another operation runs over the batch; export \
         it in evaluation mode (`module.eval()`)"
    )]
    DependsOnBatch {
        /// The encoder.
        name: String,
        /// Largest difference, relative to the largest value.
        difference: f64,
    },

    /// The file's code refers to a fixed device.
    #[error(
        "{} is tied to the device it was traced on: its code contains {found}, which does not move with the module; \
         make such tensors buffers of the module, or script it, and export it again",
        path.display()
    )]
    TiedToDevice {
        /// The TorchScript file.
        path: PathBuf,
        /// The code that refers to the device.
        found: String,
    },

    /// The images have a shape or dtype that encoders do not accept.
    #[error("images must be u8 [B, 3, H, W]; found {kind} {found:?}")]
    InvalidImages {
        /// Their shape.
        found: Vec<i64>,
        /// Their dtype.
        kind: String,
    },

    /// The encoder does not resize, and the images have another size.
    #[error(
        "encoder {name} requires images of {wanted} x {wanted} pixels and does not resize them; found \
         {height} x {width}"
    )]
    Size {
        /// The encoder.
        name: String,
        /// The required side in pixels.
        wanted: i64,
        /// Height of the images in pixels.
        height: i64,
        /// Width of the images in pixels.
        width: i64,
    },

    /// A native encoder failed.
    #[error(transparent)]
    Classic(#[from] ClassicError),

    /// libtorch failed.
    #[error(transparent)]
    Tch(#[from] TchError),

    /// The weights of a network with random weights cannot be drawn.
    #[error(transparent)]
    Torch(#[from] TorchError),
}

fn did_you_mean(nearest: &[String]) -> String {
    if nearest.is_empty() {
        "; `runner encoders list` lists them".to_owned()
    } else {
        format!("; did you mean {}?", nearest.join(" or "))
    }
}

fn sides(allowed: &[i64]) -> String {
    let sides: Vec<String> = allowed.iter().map(i64::to_string).collect();
    sides.join(" or ")
}

fn folders(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    names.join(", ")
}
