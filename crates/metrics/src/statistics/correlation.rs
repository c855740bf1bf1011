//! Pearson's and Spearman's correlation coefficients.

use super::sample::{Centred, check_finite, check_pairs, check_varies};
use crate::MetricsError;

/// Computes Pearson's r of the pairs, in `[-1, 1]`.
///
/// Equals `numpy.corrcoef`, which upstream's `plot_correlation` uses.
///
/// # Errors
///
/// [`MetricsError::Shape`] for different lengths, [`MetricsError::TooFew`] below 2 pairs,
/// [`MetricsError::NonFinite`], [`MetricsError::Constant`], [`MetricsError::OutOfRange`] for values
/// whose spread overflows float64.
pub fn pearson(x: &[f64], y: &[f64]) -> Result<f64, MetricsError> {
    check_pairs(x, y, 2)?;
    check_varies("x", x)?;
    check_varies("y", y)?;
    let (x, y) = (Centred::new("x", x)?, Centred::new("y", y)?);
    let r = x.dot(&y) / (x.dot(&x) * y.dot(&y)).sqrt();
    Ok(r.clamp(-1.0, 1.0))
}

/// Computes Spearman's rho of the pairs, in `[-1, 1]`: Pearson's r of their ranks.
///
/// # Errors
///
/// Those of [`pearson`], except [`MetricsError::OutOfRange`].
pub fn spearman(x: &[f64], y: &[f64]) -> Result<f64, MetricsError> {
    check_pairs(x, y, 2)?;
    check_varies("x", x)?;
    check_varies("y", y)?;
    pearson(&ranks(x)?, &ranks(y)?)
}

/// Computes the rank of each value, starting at 1 for the smallest; equal values share the mean of their ranks.
///
/// # Errors
///
/// [`MetricsError::NonFinite`].
pub fn ranks(values: &[f64]) -> Result<Vec<f64>, MetricsError> {
    check_finite("the values", values)?;
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for tied in order.chunk_by(|&i, &j| values[i] == values[j]) {
        let rank = before as f64 + (tied.len() + 1) as f64 / 2.0;
        for &i in tied {
            ranks[i] = rank;
        }
        before += tied.len();
    }
    Ok(ranks)
}
