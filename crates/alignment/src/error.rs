//! The errors of this crate.

use tch::TchError;
use thiserror::Error;
use torch_ext::TorchError;

/// Why tokens could not be projected, normalised or compared.
#[derive(Debug, Error)]
pub enum AlignmentError {
    /// A tensor is not a batch of tokens.
    #[error("{what} have shape {found:?}; tokens are [batch, tokens, width]")]
    NotTokens {
        /// Which tensor.
        what: &'static str,
        /// Its shape.
        found: Vec<i64>,
    },

    /// The encoder's tokens and the denoiser's differ in shape.
    #[error(
        "encoder tokens have shape {target:?}, {what} {found:?}: both must have the \
         same batch and grid, and projected tokens the same width; resize the encoder's tokens to the denoiser's \
         grid and build the head with the encoder's width"
    )]
    ShapeMismatch {
        /// Shape of the encoder's tokens.
        target: Vec<i64>,
        /// Which tokens of the denoiser.
        what: &'static str,
        /// Their shape.
        found: Vec<i64>,
    },

    /// The number of tensors differs from the number that the terms need.
    #[error("there are tokens of {found} {what}, and the terms of the alignment need {expected}")]
    Count {
        /// What the tensors belong to.
        what: &'static str,
        /// The number of tensors.
        found: usize,
        /// The number that the terms need.
        expected: usize,
    },

    /// The width of the tokens is not the head's input width.
    #[error("hidden tokens have shape {found:?}; this head takes width {expected}")]
    Width {
        /// Shape of the tokens.
        found: Vec<i64>,
        /// The head's input width.
        expected: i64,
    },

    /// The number of tokens is not a square, and the caller passed no grid.
    #[error(
        "{tokens} tokens do not fill a square grid; pass the grid as (rows, columns) to \
         `Head::forward_on_grid`"
    )]
    NotSquare {
        /// Number of tokens per sample.
        tokens: i64,
    },

    /// The number of tokens is not rows times columns.
    #[error("a grid of {rows} x {columns} does not hold {tokens} tokens")]
    Grid {
        /// Rows of the grid.
        rows: i64,
        /// Columns of the grid.
        columns: i64,
        /// Number of tokens per sample.
        tokens: i64,
    },

    /// Spatial normalisation of fewer than 2 tokens, whose standard deviation is undefined.
    #[error(
        "spatial normalisation needs at least 2 tokens, found {0}: use a smaller patch, or the \
         method `none`"
    )]
    TooFewTokens(i64),

    /// A kernel size other than 1, 3, 5 and 7.
    #[error("kernel {0} is not supported; allowed are 1, 3, 5 and 7")]
    KernelSize(i64),

    /// A setting is out of range.
    #[error("{name} is {found}, must be {allowed}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        found: f64,
        /// The allowed values.
        allowed: &'static str,
    },

    /// The alignment loss has no terms.
    #[error("the alignment loss has no terms; list at least one, or omit the alignment")]
    NoTerm,

    /// A libtorch operation failed.
    #[error(transparent)]
    Torch(#[from] TorchError),
}

impl From<TchError> for AlignmentError {
    fn from(error: TchError) -> Self {
        Self::Torch(error.into())
    }
}
