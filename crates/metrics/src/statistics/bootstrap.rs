//! Percentile bootstrap intervals.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::sample::check_pairs;
use crate::MetricsError;

/// A confidence interval of a statistic.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Computes the percentile bootstrap interval of a statistic of pairs, with [`bootstrap_interval_of`]. `statistic` is any
/// function of `x` and `y`, such as [`pearson`](super::pearson).
///
/// # Errors
///
/// [`MetricsError::Shape`] for different lengths; [`MetricsError::NonFinite`]; the errors of
/// [`bootstrap_interval_of`].
pub fn bootstrap_interval<S>(
    x: &[f64],
    y: &[f64],
    statistic: S,
    resamples: usize,
    level: f64,
    seed: u64,
) -> Result<Interval, MetricsError>
where
    S: Fn(&[f64], &[f64]) -> Result<f64, MetricsError> + Sync,
{
    check_pairs(x, y, 1)?;
    let of_drawn = |drawn: &[usize]| {
        let (x, y): (Vec<f64>, Vec<f64>) = drawn.iter().map(|&i| (x[i], y[i])).unzip();
        statistic(&x, &y)
    };
    bootstrap_interval_of(x.len(), of_drawn, resamples, level, seed)
}

/// Computes the percentile bootstrap interval of a statistic of `count` observations.
///
/// Draws `resamples` resamples of `count` observations, with replacement, and returns the quantiles
/// `(1 - level) / 2` and `(1 + level) / 2` of the statistic over them (Efron 1979), interpolated
/// linearly as in numpy. `statistic` receives the indices of the observations, below `count`.
///
/// A resample on which the statistic fails or is not finite, for example because all its observations are equal, is
/// excluded.
/// Resample `i` draws from stream `i` of a ChaCha generator seeded with `seed`, so the interval has the
/// same bits for any number of threads.
///
/// # Errors
///
/// [`MetricsError::OutOfRange`] unless `level` is inside (0, 1); [`MetricsError::TooFew`] without observations or
/// resamples; the error of the statistic on the original observations; [`MetricsError::UndefinedResamples`] if it is
/// undefined on more than half of the resamples.
pub fn bootstrap_interval_of<S>(
    count: usize,
    statistic: S,
    resamples: usize,
    level: f64,
    seed: u64,
) -> Result<Interval, MetricsError>
where
    S: Fn(&[usize]) -> Result<f64, MetricsError> + Sync,
{
    if !(level > 0.0 && level < 1.0) {
        return Err(MetricsError::OutOfRange {
            what: "the level of the bootstrap interval",
            found: level,
            allowed: "between 0 and 1, such as 0.95",
        });
    }
    for (unit, found) in [("observations", count), ("resamples", resamples)] {
        if found == 0 {
            return Err(MetricsError::TooFew {
                what: "the bootstrap",
                unit,
                found,
                needed: 1,
            });
        }
    }
    let original: Vec<usize> = (0..count).collect();
    statistic(&original)?;

    let resample = |stream: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream as u64);
        let drawn: Vec<usize> = (0..count).map(|_| rng.random_range(0..count)).collect();
        statistic(&drawn).ok().filter(|value| value.is_finite())
    };
    let mut values: Vec<f64> = (0..resamples)
        .into_par_iter()
        .filter_map(resample)
        .collect();
    if values.is_empty() || values.len() < resamples - values.len() {
        return Err(MetricsError::UndefinedResamples {
            defined: values.len(),
            resamples,
        });
    }
    values.sort_unstable_by(f64::total_cmp);
    Ok(Interval {
        low: quantile(&values, (1.0 - level) / 2.0),
        high: quantile(&values, (1.0 + level) / 2.0),
    })
}

/// Returns a quantile of sorted values, interpolated linearly between the two nearest.
fn quantile(sorted: &[f64], probability: f64) -> f64 {
    let position = probability * (sorted.len() - 1) as f64;
    let below = position as usize;
    let (low, high) = (sorted[below], sorted[(below + 1).min(sorted.len() - 1)]);
    // The bound keeps quantiles in order if the sum is rounded up.
    (low + (high - low) * (position - below as f64)).min(high)
}
