use std::io;
use std::path::PathBuf;

use tch::TchError;
use thiserror::Error;

use crate::Precision;
use crate::classic::ClassicError;

/// Why an encoder could not be loaded or run.
#[derive(Debug, Error)]
pub enum EncoderError {
    /// Nothing has that name.
    #[error("unknown encoder `{name}`{}", did_you_mean(.nearest))]
    Unknown {
        /// The name asked for.
        name: String,
        /// The nearest names there are.
        nearest: Vec<String>,
    },

    /// The encoder is known, but its file is not on this machine.
    #[error("encoder {name} is not here: {}.pt was looked for in {}; {hint}", .name, folders(.searched))]
    Missing {
        /// The encoder.
        name: String,
        /// How to get the file.
        hint: String,
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },

    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// A TorchScript file lies there without a sidecar that describes it.
    #[error("{} has no sidecar {}; export it again, or write one (see the crate's documentation)", file.display(), sidecar.display())]
    NoSidecar {
        /// The TorchScript file.
        file: PathBuf,
        /// The sidecar that is missing.
        sidecar: PathBuf,
    },

    /// The sidecar is not what it must be; the text has line and key.
    #[error("{}: {message}", path.display())]
    Sidecar {
        /// The sidecar.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },

    /// The file is not the one that the sidecar describes.
    #[error("{} is damaged or another file: its SHA-256 is {found}, its sidecar says {expected}; export or fetch it again", path.display())]
    Checksum {
        /// The TorchScript file.
        path: PathBuf,
        /// Its checksum.
        found: String,
        /// The sidecar's.
        expected: String,
    },

    /// libtorch cannot load the file.
    #[error("{} is not a TorchScript file that this libtorch can load: {message}", path.display())]
    NotTorchScript {
        /// The file.
        path: PathBuf,
        /// libtorch's reason.
        message: String,
    },

    /// The weights cannot be cast.
    #[error("{} cannot be cast to {}: {message}; float32 may do", path.display(), precision.name())]
    Cast {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        precision: Precision,
        /// libtorch's reason.
        message: String,
    },

    /// The encoder is not made for images of this size.
    #[error("encoder {name} does not take images of {resolution} pixels: it is made for {}", sides(.allowed))]
    Resolution {
        /// The encoder.
        name: String,
        /// Side of the images.
        resolution: i64,
        /// Sides it can be made for.
        allowed: Vec<i64>,
    },

    /// The module ran, but its output is not what the sidecar declares.
    #[error("encoder {name}: {what} has shape {found:?}, declared is {declared:?}")]
    Shape {
        /// The encoder.
        name: String,
        /// Which output.
        what: &'static str,
        /// Its shape.
        found: Vec<i64>,
        /// The declared shape.
        declared: Vec<i64>,
    },

    /// The network was run and broke off, for want of memory for example.
    #[error("{name} failed on a batch of images: {reason}")]
    Failed {
        /// The encoder, or Inception.
        name: String,
        /// What the network said.
        reason: String,
    },

    /// The module returned something other than tokens.
    #[error(
        "encoder {name} does not return patch tokens, or a pair of patch tokens and class token: {found}"
    )]
    Output {
        /// The encoder.
        name: String,
        /// What it returned, or why it did not run.
        found: String,
    },

    /// The module returned something other than the three kinds of features.
    #[error("{name} does not return pooled features, spatial features and logits: {found}")]
    Features {
        /// The network.
        name: String,
        /// What it returned, or why it did not run.
        found: String,
    },

    /// The module does not compute what Python computed when it wrote the file.
    #[error("{name}: {what} differ by {difference:.1e} from what Python computed; export it again")]
    NotPythons {
        /// The network.
        name: String,
        /// Which output.
        what: &'static str,
        /// Largest difference relative to the largest value.
        difference: f64,
    },

    /// Tokens are NaN or infinite.
    #[error("encoder {name}: {what} holds NaN or infinite values for a plain test image")]
    NotFinite {
        /// The encoder.
        name: String,
        /// Which output.
        what: &'static str,
    },

    /// The same images give other tokens the second time.
    #[error(
        "encoder {name} gives the same images other tokens the second time, by {difference:.1e} of the largest: \
         dropout or another draw of random numbers is left on; export it in evaluation mode (`module.eval()`)"
    )]
    NotRepeatable {
        /// The encoder.
        name: String,
        /// Largest difference relative to the largest value.
        difference: f64,
    },

    /// An image has other tokens alone than beside another image.
    #[error(
        "encoder {name} gives an image alone other tokens than beside another image, by {difference:.1e} of the \
         largest: a batch norm is left in training mode, or something else is computed over the batch; export it \
         in evaluation mode (`module.eval()`)"
    )]
    DependsOnBatch {
        /// The encoder.
        name: String,
        /// Largest difference relative to the largest value.
        difference: f64,
    },

    /// The file's code names a device.
    #[error(
        "{} is tied to the device it was made on: its code has {found}, which does not move with the module; \
         make such tensors buffers of the module, or script it, and export it again",
        path.display()
    )]
    TiedToDevice {
        /// The TorchScript file.
        path: PathBuf,
        /// What names the device.
        found: String,
    },

    /// Images of a shape or dtype that encoders do not take.
    #[error("images must be u8 [B, 3, H, W]; these are {kind} {found:?}")]
    Images {
        /// Their shape.
        found: Vec<i64>,
        /// Their dtype.
        kind: String,
    },

    /// The encoder does not resize, and the images have another size.
    #[error(
        "encoder {name} takes images of {wanted} x {wanted} pixels and does not resize; these have {height} x {width}"
    )]
    Size {
        /// The encoder.
        name: String,
        /// The side it takes.
        wanted: i64,
        /// Height of the images.
        height: i64,
        /// Width of the images.
        width: i64,
    },

    /// A native encoder refused the images.
    #[error(transparent)]
    Classic(#[from] ClassicError),

    /// libtorch failed.
    #[error(transparent)]
    Tch(#[from] TchError),
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
