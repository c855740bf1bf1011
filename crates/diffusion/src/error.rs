use std::path::PathBuf;

use tch::{Kind, TchError};
use thiserror::Error;
use torch_ext::TorchError;

/// Why a model could not be built, run or sampled from.
#[derive(Debug, Error)]
pub enum DiffusionError {
    /// The progress callback stopped the sampling.
    #[error("interrupted")]
    Interrupted,

    /// No model has that name.
    #[error("unknown model {name:?}{} known models: {known}", did_you_mean(.nearest))]
    UnknownModel {
        /// The requested name.
        name: String,
        /// The most similar known name, if one is similar enough.
        nearest: Option<String>,
        /// All known names, separated by commas.
        known: String,
    },

    /// A setting has an invalid value.
    #[error("{name} is {found}, must be {allowed}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        found: String,
        /// The allowed values.
        allowed: String,
    },

    /// A tensor has the wrong shape for the operation.
    #[error("shape of {what} is {found:?}, expected {}", pattern(.expected))]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// Its shape.
        found: Vec<i64>,
        /// The expected shape; -1 stands for any size.
        expected: Vec<i64>,
    },

    /// A tensor has the wrong dtype for the operation.
    #[error("dtype of {what} is {found:?}, expected {expected:?}")]
    Dtype {
        /// Which tensor.
        what: &'static str,
        /// Its dtype.
        found: Kind,
        /// The expected dtype.
        expected: Kind,
    },

    /// A class label is outside the embedding table.
    #[error("label {found} is not in 0..={largest}{}", null_note(.has_null, .largest))]
    Label {
        /// The label.
        found: i64,
        /// The largest valid label.
        largest: i64,
        /// Whether the largest is the null class.
        has_null: bool,
    },

    /// Guidance was requested for a model without a null class.
    #[error(
        "cfg_scale {0} needs a null class, which a model trained with class_dropout = 0 lacks; \
         use cfg_scale = 1"
    )]
    NoNullClass(f64),

    /// A tensor that is to be written as images contains NaN or infinite values, which would become
    /// black or white pixels.
    #[error("{what} contains NaN or infinite values, so it is not an image")]
    NotFinite {
        /// Which tensor.
        what: &'static str,
    },

    /// The autoencoder cannot halve images of this size as often as it must.
    #[error(
        "images of {height} x {width} pixels do not fit the autoencoder: both sides must be \
         multiples of {multiple}; resize or crop them"
    )]
    ImageSize {
        /// Height of the images.
        height: i64,
        /// Width of the images.
        width: i64,
        /// The number that both sides must be multiples of.
        multiple: i64,
    },

    /// The file of LPIPS weights is missing.
    #[error(
        "no LPIPS weights at {}: make the file with `python \
         crates/diffusion/python/convert_lpips.py --out {}`, or train without LPIPS with \
         perceptual_weight = 0",
        .path.display(), .path.display()
    )]
    NoLpips {
        /// Where the file was expected.
        path: PathBuf,
    },

    /// A file of LPIPS weights cannot be used.
    #[error("LPIPS weights in {}: {source}", .path.display())]
    LpipsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TorchError,
    },

    /// libtorch failed.
    #[error(transparent)]
    Torch(#[from] TorchError),
}

impl DiffusionError {
    /// The error for a `name` that is not among the `known` names.
    pub(crate) fn unknown_model(name: &str, known: &[String]) -> Self {
        Self::UnknownModel {
            name: name.to_owned(),
            nearest: nearest(name, known),
            known: known.join(", "),
        }
    }
}

fn nearest(name: &str, names: &[String]) -> Option<String> {
    let lower = name.to_lowercase();
    names
        .iter()
        .map(|known| (strsim::jaro_winkler(&lower, &known.to_lowercase()), known))
        .filter(|(score, _)| *score > 0.7)
        .rev() // `max_by` returns the last of equals: reversed, that is the first
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, known)| known.clone())
}

impl From<TchError> for DiffusionError {
    fn from(error: TchError) -> Self {
        Self::Torch(error.into())
    }
}

fn pattern(expected: &[i64]) -> String {
    let sizes: Vec<String> = expected
        .iter()
        .map(|&size| match size {
            -1 => "_".to_owned(),
            size => size.to_string(),
        })
        .collect();
    format!("[{}]", sizes.join(", "))
}

fn did_you_mean(nearest: &Option<String>) -> String {
    match nearest {
        Some(name) => format!("; did you mean {name:?}?"),
        None => ";".to_owned(),
    }
}

fn null_note(has_null: &bool, largest: &i64) -> String {
    match has_null {
        true => format!(" ({largest} is the null class)"),
        false => String::new(),
    }
}
