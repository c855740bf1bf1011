//! Significance of a correlation from Student's t distribution.

use std::f64::consts::PI;

use crate::MetricsError;

/// Computes the two-sided p-value: the probability that `n` uncorrelated pairs have a correlation of `|r|` or more.
///
/// Uses `t = r sqrt((n - 2) / (1 - r^2))` with `n - 2` degrees of freedom. The result is exact for Pearson's r of
/// normal data and the usual approximation for Spearman's rho. It equals `scipy.stats.pearsonr` and `spearmanr`.
///
/// # Errors
///
/// [`MetricsError::TooFew`] below 3 pairs, [`MetricsError::OutOfRange`] for `r` outside of `[-1, 1]`.
pub fn correlation_p_value(r: f64, n: usize) -> Result<f64, MetricsError> {
    if n < 3 {
        return Err(MetricsError::TooFew {
            what: "the sample",
            unit: "pairs",
            found: n,
            needed: 3,
        });
    }
    if !(-1.0..=1.0).contains(&r) {
        return Err(MetricsError::OutOfRange {
            what: "the correlation",
            found: r,
            allowed: "in [-1, 1]",
        });
    }
    // p = I_x(a, 1/2) with a = (n - 2) / 2 and x = 1 - r^2. The continued fraction converges fast only
    // on one side of the distribution's mean; on the other side the complement is used.
    let degrees = n - 2;
    let a = degrees as f64 / 2.0;
    let (x, complement) = ((1.0 - r) * (1.0 + r), r * r);
    let factor = x.powf(a) * complement.sqrt() / beta_half(degrees);
    if x < (a + 1.0) / (a + 2.5) {
        Ok(factor * beta_fraction(x, a, 0.5) / a)
    } else {
        Ok(1.0 - factor * beta_fraction(complement, 0.5, a) / 0.5)
    }
}

/// Computes the beta function `B(degrees / 2, 1/2)`.
fn beta_half(degrees: usize) -> f64 {
    let odd = degrees % 2 == 1;
    let (mut a, mut beta) = if odd { (0.5, PI) } else { (1.0, 2.0) };
    for _ in 0..(degrees - 1) / 2 {
        beta *= a / (a + 0.5);
        a += 1.0;
    }
    beta
}

/// Computes the continued fraction of the incomplete beta function `I_x(a, b)` (DLMF 8.17.22), by Lentz's
/// algorithm.
fn beta_fraction(x: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    const MAX_TERMS: usize = 10_000;
    let away_from_zero = |value: f64| if value.abs() < TINY { TINY } else { value };

    let mut c = 1.0;
    let mut d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for m in 1..MAX_TERMS {
        let m = m as f64;
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut step = 1.0;
        for coefficient in [even, odd] {
            d = 1.0 / away_from_zero(1.0 + coefficient * d);
            c = away_from_zero(1.0 + coefficient / c);
            step = c * d;
            fraction *= step;
        }
        if (step - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    fraction
}
