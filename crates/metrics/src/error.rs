//! The crate's one error type.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::spatial::Grid;

/// Why a metric could not be computed.
///
/// Positions are row-major and count from zero.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The caller's flag was set.
    #[error("interrupted")]
    Interrupted,

    /// The tokens do not fill the grid.
    #[error(
        "the input has {found} tokens an image, but a {grid} grid has {}: give the grid that the \
         encoder declares",
        grid.tokens()
    )]
    GridMismatch {
        /// Tokens an image in the input.
        found: usize,
        /// The grid they were said to lie on.
        grid: Grid,
    },

    /// Spatial metrics compare tokens, so a grid needs two.
    #[error(
        "a {grid} grid has no pair of tokens to compare: spatial metrics need 2 tokens or more"
    )]
    GridTooSmall {
        /// The grid in question.
        grid: Grid,
    },

    /// The pixels of a mask do not divide into the patches of the grid.
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

    /// Two inputs that belong together differ in shape.
    #[error("{what} has shape {found:?}, but {expected:?} is needed")]
    Shape {
        /// The input in question.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that fits the other inputs.
        expected: Vec<usize>,
    },

    /// NaN or infinity in an input.
    #[error("{what} holds {value} at {index:?}: every value must be finite")]
    NonFinite {
        /// The input in question.
        what: &'static str,
        /// Where the value is.
        index: Vec<usize>,
        /// The value.
        value: f64,
    },

    /// An input has fewer values than the statistic needs.
    #[error("{what} has {found} of the at least {needed} {unit} that are needed")]
    TooFew {
        /// The input in question.
        what: &'static str,
        /// What is counted.
        unit: &'static str,
        /// How many there are.
        found: usize,
        /// How many are needed.
        needed: usize,
    },

    /// All values of an input are equal, so that it correlates with nothing.
    #[error("all {count} values of {what} are {value}: a constant has no correlation and no slope")]
    Constant {
        /// The input in question.
        what: &'static str,
        /// How many values there are.
        count: usize,
        /// The value.
        value: f64,
    },

    /// A parameter outside its range.
    #[error("{what} is {found}, but must be {allowed}")]
    OutOfRange {
        /// The parameter.
        what: &'static str,
        /// Its value.
        found: f64,
        /// What is allowed.
        allowed: &'static str,
    },

    /// A matrix given as covariance is none.
    #[error("the covariance is no covariance: {reason}")]
    NotCovariance {
        /// What is wrong with it, with figures.
        reason: String,
    },

    /// An iterative decomposition gave up.
    #[error("the {decomposition} of a {size}x{size} matrix did not converge")]
    NoConvergence {
        /// Which decomposition.
        decomposition: &'static str,
        /// The matrix' size.
        size: usize,
    },

    /// A descent ran away with every learning rate.
    #[error("{what} diverged with every learning rate of {rates:?}: give smaller ones")]
    Diverged {
        /// What was trained.
        what: &'static str,
        /// The rates that were tried.
        rates: Vec<f64>,
    },

    /// A statistic is undefined on most bootstrap resamples.
    #[error(
        "the statistic is defined on only {defined} of {resamples} bootstrap resamples (the others are \
         constant, or the value is not finite): there are too few different values for an interval"
    )]
    UndefinedResamples {
        /// Resamples on which the statistic has a value.
        defined: usize,
        /// Resamples drawn.
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
