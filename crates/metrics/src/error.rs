//! The error type of the crate.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::spatial::Grid;

/// Why a metric could not be computed.
///
/// Indices count from zero, and token positions are row-major.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The caller requested an interruption.
    #[error("interrupted")]
    Interrupted,

    /// The number of tokens does not match the grid.
    #[error(
        "the input has {found} tokens per image, but a {grid} grid has {}: pass the grid that the \
         encoder declares",
        grid.tokens()
    )]
    GridMismatch {
        /// Tokens per image in the input.
        found: usize,
        /// The declared grid.
        grid: Grid,
    },

    /// The grid has fewer than two tokens, but spatial metrics compare pairs of tokens.
    #[error(
        "a {grid} grid has no pair of tokens to compare: spatial metrics need at least 2 tokens"
    )]
    GridTooSmall {
        /// The grid.
        grid: Grid,
    },

    /// The sides of a mask are not multiples of the sides of the grid.
    #[error(
        "a mask of {height}x{width} pixels (height x width) cannot be cut into {grid} equal patches: \
         resize it so that each side is a multiple of the grid's"
    )]
    MaskSize {
        /// Height of the mask in pixels.
        height: usize,
        /// Width of the mask in pixels.
        width: usize,
        /// The grid of patches.
        grid: Grid,
    },

    /// The shape of an input does not match the other inputs.
    #[error("{what} has shape {found:?}, but {expected:?} is required")]
    Shape {
        /// Name of the input.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The required shape.
        expected: Vec<usize>,
    },

    /// An input contains NaN or infinity.
    #[error("{what} contains {value} at {index:?}: every value must be finite")]
    NonFinite {
        /// Name of the input.
        what: &'static str,
        /// Index of the value.
        index: Vec<usize>,
        /// The value.
        value: f64,
    },

    /// An input has fewer values than the statistic needs.
    #[error("{what} needs at least {needed} {unit}, but has {found}")]
    TooFew {
        /// Name of the input.
        what: &'static str,
        /// The counted unit.
        unit: &'static str,
        /// Number found.
        found: usize,
        /// Smallest number allowed.
        needed: usize,
    },

    /// All values of an input are equal, so that its correlation is undefined.
    #[error("all {count} values of {what} are {value}: a constant has no correlation and no slope")]
    Constant {
        /// Name of the input.
        what: &'static str,
        /// Number of values.
        count: usize,
        /// The value.
        value: f64,
    },

    /// A parameter is out of range.
    #[error("{what} is {found}, but must be {allowed}")]
    OutOfRange {
        /// Name of the parameter.
        what: &'static str,
        /// Its value.
        found: f64,
        /// Description of the allowed values.
        allowed: &'static str,
    },

    /// A matrix is not a valid covariance.
    #[error("the covariance matrix is invalid: {reason}")]
    NotCovariance {
        /// What is wrong with it, with the values.
        reason: String,
    },

    /// An iterative decomposition did not converge.
    #[error("the {decomposition} of a {size}x{size} matrix did not converge")]
    NoConvergence {
        /// Name of the decomposition.
        decomposition: &'static str,
        /// Size of the matrix.
        size: usize,
    },

    /// Gradient descent diverged with every learning rate.
    #[error("{what} diverged with every learning rate of {rates:?}: use smaller ones")]
    Diverged {
        /// Name of the trained model.
        what: &'static str,
        /// The learning rates that were tried.
        rates: Vec<f64>,
    },

    /// A statistic is undefined on most bootstrap resamples.
    #[error(
        "the statistic is defined on only {defined} of {resamples} bootstrap resamples (the others are \
         constant, or the value is not finite): there are too few distinct values for an interval"
    )]
    UndefinedResamples {
        /// Number of resamples on which the statistic is defined.
        defined: usize,
        /// Number of resamples.
        resamples: usize,
    },
}

/// `Err` once the caller's flag is set.
pub(crate) fn check_interrupted(interrupted: &AtomicBool) -> Result<(), MetricsError> {
    match interrupted.load(Ordering::Relaxed) {
        true => Err(MetricsError::Interrupted),
        false => Ok(()),
    }
}
