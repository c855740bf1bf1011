//! Least-squares fit of a line.

use serde::{Deserialize, Serialize};

use super::sample::{Centred, check_pairs, check_varies};
use crate::MetricsError;

/// The line `y = slope * x + intercept`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Change of `y` per unit of `x`.
    pub slope: f64,
    /// `y` at `x = 0`.
    pub intercept: f64,
}

impl Line {
    /// Returns `y` at `x`.
    pub fn evaluate(&self, x: f64) -> f64 {
        self.slope * x + self.intercept
    }
}

/// Fits the line with the smallest sum of squared vertical distances to the points, as `numpy.polyfit` with degree 1
/// does.
///
/// # Errors
///
/// [`MetricsError::Shape`] for different lengths, [`MetricsError::TooFew`] below 2 pairs,
/// [`MetricsError::NonFinite`], [`MetricsError::Constant`] for a constant `x` (for a constant `y` the slope is
/// 0), [`MetricsError::OutOfRange`] if the spread of the values or a coefficient of the line overflows float64.
pub fn fit_line(x: &[f64], y: &[f64]) -> Result<Line, MetricsError> {
    check_pairs(x, y, 2)?;
    check_varies("x", x)?;
    let (x, y) = (Centred::new("x", x)?, Centred::new("y", y)?);
    let slope = x.dot(&y) / x.dot(&x) * (y.scale / x.scale);
    let intercept = y.mean - slope * x.mean;
    for (what, value) in [("the slope", slope), ("the intercept", intercept)] {
        if !value.is_finite() {
            return Err(MetricsError::OutOfRange {
                what,
                found: value,
                allowed: "within the range of float64",
            });
        }
    }
    Ok(Line { slope, intercept })
}
