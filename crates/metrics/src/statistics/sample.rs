//! Checks and centres columns of values.

use crate::MetricsError;

/// Checks that two columns have the same length, at least `needed` values, and only finite values.
pub(super) fn check_pairs(x: &[f64], y: &[f64], needed: usize) -> Result<(), MetricsError> {
    if x.len() != y.len() {
        return Err(MetricsError::Shape {
            what: "y",
            found: vec![y.len()],
            expected: vec![x.len()],
        });
    }
    if x.len() < needed {
        return Err(MetricsError::TooFew {
            what: "the sample",
            unit: "pairs",
            found: x.len(),
            needed,
        });
    }
    check_finite("x", x)?;
    check_finite("y", y)
}

/// Checks that all values are finite.
pub(super) fn check_finite(what: &'static str, values: &[f64]) -> Result<(), MetricsError> {
    match values.iter().enumerate().find(|(_, x)| !x.is_finite()) {
        Some((index, &value)) => Err(MetricsError::NonFinite {
            what,
            index: vec![index],
            value,
        }),
        None => Ok(()),
    }
}

/// Checks that not all values are equal.
pub(super) fn check_varies(what: &'static str, values: &[f64]) -> Result<(), MetricsError> {
    match values {
        [first, rest @ ..] if rest.iter().all(|value| value == first) => {
            Err(MetricsError::Constant {
                what,
                count: values.len(),
                value: *first,
            })
        }
        _ => Ok(()),
    }
}

/// A column represented as `mean + scale * unit[i]`, where the largest absolute value of `unit` is 1.
///
/// The scale prevents overflow and underflow of sums of squares, for values of any size.
pub(super) struct Centred {
    pub(super) mean: f64,
    pub(super) scale: f64,
    pub(super) unit: Vec<f64>,
}

impl Centred {
    /// Centres and scales a column.
    ///
    /// # Errors
    ///
    /// [`MetricsError::OutOfRange`] if the spread of the values overflows float64.
    pub(super) fn new(what: &'static str, values: &[f64]) -> Result<Self, MetricsError> {
        let count = values.len() as f64;
        let first_mean: f64 = values.iter().map(|x| x / count).sum();
        // The rounding error of a large mean would otherwise be part of every difference from it.
        let correction: f64 = values.iter().map(|x| (x - first_mean) / count).sum();
        let centred: Vec<f64> = values
            .iter()
            .map(|x| (x - first_mean) - correction)
            .collect();
        let scale = centred.iter().fold(0.0, |scale: f64, x| scale.max(x.abs()));
        if !scale.is_finite() {
            return Err(MetricsError::OutOfRange {
                what,
                found: scale,
                allowed: "limited to a spread within the range of float64",
            });
        }
        let divisor = if scale == 0.0 { 1.0 } else { scale };
        Ok(Self {
            mean: first_mean + correction,
            scale,
            unit: centred.iter().map(|x| x / divisor).collect(),
        })
    }

    /// Returns the sum of products with another column, both in unit scale.
    pub(super) fn dot(&self, other: &Self) -> f64 {
        self.unit.iter().zip(&other.unit).map(|(x, y)| x * y).sum()
    }
}
