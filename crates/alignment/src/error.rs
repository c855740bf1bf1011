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

    /// The encoder's tokens and the projected tokens differ in shape.
    #[error(
        "encoder tokens {target:?} against projected tokens {projected:?}: both must have the same \
         batch, grid and width; resize the encoder's tokens to the denoiser's grid and give the \
         head the encoder's width"
    )]
    ShapeMismatch {
        /// Shape of the encoder's tokens.
        target: Vec<i64>,
        /// Shape of the projected tokens.
        projected: Vec<i64>,
    },

    /// Encoders and heads do not go in pairs.
    #[error(
        "tokens of {targets} encoders against {projected} projections: each encoder needs one head, \
         and there must be at least one"
    )]
    EncoderCount {
        /// Number of encoders.
        targets: usize,
        /// Number of projections.
        projected: usize,
    },

    /// Tokens of another width than the head was made for.
    #[error("hidden tokens have shape {found:?}; this head takes width {expected}")]
    Width {
        /// Shape of the tokens.
        found: Vec<i64>,
        /// Width the head was made for.
        expected: i64,
    },

    /// Tokens that do not fill a square grid, and no grid was given.
    #[error(
        "{tokens} tokens do not fill a square grid; give the grid as (rows, columns) to \
         `Head::forward_on_grid`"
    )]
    NotSquare {
        /// Number of tokens of a sample.
        tokens: i64,
    },

    /// A grid that does not hold the tokens.
    #[error("a grid of {rows} x {columns} does not hold {tokens} tokens")]
    Grid {
        /// Rows of the grid.
        rows: i64,
        /// Columns of the grid.
        columns: i64,
        /// Number of tokens of a sample.
        tokens: i64,
    },

    /// Spatial normalisation of a single token: its standard deviation is not defined.
    #[error(
        "spatial normalisation needs at least 2 tokens, found {0}: use a smaller patch, or the \
         method `none`"
    )]
    TooFewTokens(i64),

    /// A convolution kernel that is not offered.
    #[error("kernel {0} is not offered; allowed are 1, 3, 5 and 7")]
    Kernel(i64),

    /// A number outside the range it may have.
    #[error("{name} is {found}, must be {allowed}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        found: f64,
        /// The values it may have.
        allowed: &'static str,
    },

    /// An alignment loss without any term.
    #[error("the list of alignment losses is empty; leave alignment out instead")]
    NoLoss,

    /// libtorch failed.
    #[error(transparent)]
    Torch(#[from] TorchError),
}

impl From<TchError> for AlignmentError {
    fn from(error: TchError) -> Self {
        Self::Torch(error.into())
    }
}
