//! The four metrics of one image.

use ndarray::{Array2, ArrayView1, ArrayView2, aview1};

use super::Grid;
use super::similarity::{
    DistanceProfile, NORM_FLOOR, SRSS_NORM_FLOOR, cosine_similarity, gram, norms, unit_tokens,
};
use crate::MetricsError;

/// Local-vs-distant similarity of one image's tokens `[T, D]`, in [-2, 2].
///
/// Mean cosine over the pairs of horizontal and vertical neighbours, minus mean cosine over the pairs
/// at Manhattan distance `far_distance` or more (0 if the grid has no such pair). Upstream: `metric_lds`.
///
/// # Errors
///
/// [`MetricsError::GridMismatch`], [`MetricsError::GridTooSmall`], [`MetricsError::NonFinite`].
pub fn lds(
    tokens: ArrayView2<'_, f32>,
    grid: Grid,
    far_distance: usize,
) -> Result<f64, MetricsError> {
    Ok(local_minus_far(&profile(tokens, grid)?, far_distance))
}

/// Correlation-decay slope of one image's tokens `[T, D]`, in cosine per patch.
///
/// Minus the least-squares slope of the mean cosine at distance `d` against `d = 1, 2, ..`, up to
/// `max_distance` or the grid's largest; 0 if that leaves fewer than two distances. Upstream:
/// `metric_cds`.
///
/// # Errors
///
/// [`MetricsError::GridMismatch`], [`MetricsError::GridTooSmall`], [`MetricsError::NonFinite`].
pub fn cds(
    tokens: ArrayView2<'_, f32>,
    grid: Grid,
    max_distance: usize,
) -> Result<f64, MetricsError> {
    Ok(decay(&profile(tokens, grid)?, max_distance))
}

/// Mean cosine of one image's tokens `[T, D]` at Manhattan distances 1, 2, ... up to the grid's largest.
///
/// The curve that [`cds`] fits a line to.
///
/// # Errors
///
/// [`MetricsError::GridMismatch`], [`MetricsError::GridTooSmall`], [`MetricsError::NonFinite`].
pub fn distance_profile(tokens: ArrayView2<'_, f32>, grid: Grid) -> Result<Vec<f64>, MetricsError> {
    Ok(profile(tokens, grid)?.means())
}

/// Semantic-region self-similarity of one image's tokens `[T, D]`, in [-2, 2].
///
/// For each foreground token of `mask` (`T` values, true for foreground): mean cosine to the other
/// foreground tokens within `near_distance`, minus mean cosine to the background tokens at
/// `far_distance` or more. The result is the mean over the foreground tokens that have both kinds;
/// `None` where there is no such token. Upstream: `metric_srss`, NaN for `None`.
///
/// # Errors
///
/// [`MetricsError::GridMismatch`], [`MetricsError::GridTooSmall`], [`MetricsError::NonFinite`], and
/// [`MetricsError::Shape`] for a mask of another length.
pub fn srss(
    tokens: ArrayView2<'_, f32>,
    grid: Grid,
    mask: &[bool],
    near_distance: usize,
    far_distance: usize,
) -> Result<Option<f64>, MetricsError> {
    grid.check(tokens.nrows())?;
    if mask.len() != grid.tokens() {
        return Err(MetricsError::Shape {
            what: "the foreground mask",
            found: vec![mask.len()],
            expected: vec![grid.tokens()],
        });
    }
    let similarity = gram(&unit_tokens(tokens, &norms(tokens)?, SRSS_NORM_FLOOR));
    let mask = aview1(mask);
    Ok(foreground_contrast(
        &similarity,
        grid,
        mask,
        near_distance,
        far_distance,
    ))
}

/// Root mean square contrast of one image's tokens `[T, D]`, in [0, 1].
///
/// `sqrt(mean over t of |x_t - mean x|^2)` for tokens `x` of unit length; 0 for equal tokens. Upstream:
/// `metric_rmsc`.
///
/// # Errors
///
/// [`MetricsError::TooFew`] without tokens, [`MetricsError::NonFinite`].
pub fn rmsc(tokens: ArrayView2<'_, f32>) -> Result<f64, MetricsError> {
    if tokens.nrows() == 0 {
        return Err(MetricsError::TooFew {
            what: "the image",
            unit: "tokens",
            found: 0,
            needed: 1,
        });
    }
    Ok(contrast(&unit_tokens(tokens, &norms(tokens)?, NORM_FLOOR)))
}

fn profile(tokens: ArrayView2<'_, f32>, grid: Grid) -> Result<DistanceProfile, MetricsError> {
    grid.check(tokens.nrows())?;
    Ok(DistanceProfile::new(
        cosine_similarity(tokens)?.view(),
        grid,
    ))
}

pub(super) fn local_minus_far(profile: &DistanceProfile, far_distance: usize) -> f64 {
    // The pairs at Manhattan distance 1 are the horizontal and vertical neighbours. A grid of two
    // tokens or more has some, so the first mean exists.
    let local = profile.means().first().copied().unwrap_or(0.0);
    local - profile.mean_beyond(far_distance)
}

pub(super) fn decay(profile: &DistanceProfile, max_distance: usize) -> f64 {
    let mut means = profile.means();
    means.truncate(max_distance);
    let count = means.len() as f64;
    // The distances are 1, 2, .., count.
    let centre = (count + 1.0) / 2.0;
    let mean = means.iter().sum::<f64>() / count.max(1.0);
    let (mut covariance, mut variance) = (0.0, 0.0);
    for (i, value) in means.iter().enumerate() {
        let offset = (i + 1) as f64 - centre;
        covariance += (value - mean) * offset;
        variance += offset * offset;
    }
    if variance == 0.0 {
        return 0.0;
    }
    -covariance / variance
}

pub(super) fn foreground_contrast(
    similarity: &Array2<f32>,
    grid: Grid,
    mask: ArrayView1<'_, bool>,
    near_distance: usize,
    far_distance: usize,
) -> Option<f64> {
    let (mut total, mut anchors) = (0.0, 0_u64);
    for (i, row) in similarity.outer_iter().enumerate() {
        if !mask[i] {
            continue;
        }
        let (y, x) = grid.position(i);
        let (mut near, mut near_count) = (0.0, 0_u64);
        let (mut far, mut far_count) = (0.0, 0_u64);
        for (j, (&cosine, &foreground)) in row.iter().zip(mask).enumerate() {
            let (other_y, other_x) = grid.position(j);
            let distance = y.abs_diff(other_y) + x.abs_diff(other_x);
            if foreground {
                if (1..=near_distance).contains(&distance) {
                    near += f64::from(cosine);
                    near_count += 1;
                }
            } else if distance >= far_distance {
                far += f64::from(cosine);
                far_count += 1;
            }
        }
        if near_count > 0 && far_count > 0 {
            total += near / near_count as f64 - far / far_count as f64;
            anchors += 1;
        }
    }
    (anchors > 0).then(|| total / anchors as f64)
}

pub(super) fn contrast(unit: &Array2<f32>) -> f64 {
    let tokens = unit.nrows() as f64;
    let mut mean = vec![0.0; unit.ncols()];
    for token in unit.outer_iter() {
        for (mean, &value) in mean.iter_mut().zip(token) {
            *mean += f64::from(value) / tokens;
        }
    }
    let mut square = 0.0;
    for token in unit.outer_iter() {
        for (mean, &value) in mean.iter().zip(token) {
            let centred = f64::from(value) - mean;
            square += centred * centred;
        }
    }
    (square / tokens).sqrt()
}
