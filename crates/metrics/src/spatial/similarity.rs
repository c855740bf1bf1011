//! Unit tokens, their cosines, and the cosines' mean at each distance.

use ndarray::{Array2, ArrayView2, Axis};

use super::Grid;
use crate::MetricsError;

/// Lower bound of a token's norm in LDS, CDS and RMSC.
pub(super) const NORM_FLOOR: f64 = 1e-8;

/// Lower bound of a token's norm in SRSS, where upstream leaves torch's default.
pub(super) const SRSS_NORM_FLOOR: f64 = 1e-12;

/// Cosine similarity `[T, T]` of every pair of the tokens `[T, D]` of one image.
///
/// A zero token has similarity 0 to every token, itself included. Tokens with a norm under 1e-8 count
/// as shorter than 1, as in upstream's metrics.
///
/// # Errors
///
/// [`MetricsError::NonFinite`].
pub fn cosine_similarity(tokens: ArrayView2<'_, f32>) -> Result<Array2<f32>, MetricsError> {
    Ok(gram(&unit_tokens(tokens, &norms(tokens)?, NORM_FLOOR)))
}

/// Norm of each token of `[T, D]`, in float64 so that large float32 values do not overflow.
pub(super) fn norms(tokens: ArrayView2<'_, f32>) -> Result<Vec<f64>, MetricsError> {
    let mut norms = Vec::with_capacity(tokens.nrows());
    for (t, token) in tokens.outer_iter().enumerate() {
        let mut square = 0.0;
        for (channel, &value) in token.iter().enumerate() {
            if !value.is_finite() {
                return Err(MetricsError::NonFinite {
                    what: "tokens",
                    index: vec![t, channel],
                    value: f64::from(value),
                });
            }
            square += f64::from(value) * f64::from(value);
        }
        norms.push(square.sqrt());
    }
    Ok(norms)
}

/// The tokens `[T, D]` divided by `max(norm, floor)`.
pub(super) fn unit_tokens(tokens: ArrayView2<'_, f32>, norms: &[f64], floor: f64) -> Array2<f32> {
    let mut unit = Array2::zeros(tokens.raw_dim());
    for ((mut unit, token), norm) in unit.outer_iter_mut().zip(tokens.outer_iter()).zip(norms) {
        let norm = norm.max(floor);
        unit.zip_mut_with(&token, |unit, &value| {
            *unit = (f64::from(value) / norm) as f32;
        });
    }
    unit
}

/// `[T, T]` dot products of the rows of `[T, D]`.
pub(super) fn gram(unit: &Array2<f32>) -> Array2<f32> {
    unit.dot(&unit.t())
}

/// Sum of cosines and number of pairs of tokens at each Manhattan distance.
pub(super) struct DistanceProfile {
    sums: Vec<f64>,
    pairs: Vec<u64>,
}

impl DistanceProfile {
    /// `similarity` is `[T, T]` on the grid; pairs are ordered.
    pub(super) fn new(similarity: ArrayView2<'_, f32>, grid: Grid) -> Self {
        let mut sums = vec![0.0; grid.max_distance() + 1];
        let mut pairs = vec![0; grid.max_distance() + 1];
        for (i, row) in similarity.outer_iter().enumerate() {
            let (y, x) = grid.position(i);
            for (other_y, line) in row.axis_chunks_iter(Axis(0), grid.width).enumerate() {
                for (other_x, &cosine) in line.iter().enumerate() {
                    let distance = y.abs_diff(other_y) + x.abs_diff(other_x);
                    sums[distance] += f64::from(cosine);
                    pairs[distance] += 1;
                }
            }
        }
        Self { sums, pairs }
    }

    /// Mean cosine at distances 1, 2, ... up to the grid's largest.
    pub(super) fn means(&self) -> Vec<f64> {
        let sums_and_pairs = self.sums.iter().zip(&self.pairs).skip(1);
        sums_and_pairs.map(|(sum, &n)| sum / n as f64).collect()
    }

    /// Mean cosine of all pairs at `distance` or farther, 0 if there is none.
    pub(super) fn mean_beyond(&self, distance: usize) -> f64 {
        let from = distance.max(1);
        let sum: f64 = self.sums.iter().skip(from).sum();
        let pairs: u64 = self.pairs.iter().skip(from).sum();
        sum / pairs.max(1) as f64
    }
}
