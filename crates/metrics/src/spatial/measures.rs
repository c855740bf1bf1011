//! The four spatial metrics of one image.

use std::ops::Range;

use ndarray::ArrayView2;
use pulp::{Arch, Simd, WithSimd};

use super::check_grid::check_grid;
use super::grid::Grid;
use super::similarity::{DistanceProfile, NORM_FLOOR, SRSS_NORM_FLOOR, UnitTokens};
use crate::MetricsError;

/// Computes the local-vs-distant similarity (LDS) of one image's tokens `[T, D]`, in `[-2, 2]`.
///
/// LDS is the mean cosine over the pairs of horizontal and vertical neighbours, minus the mean cosine over the
/// pairs at Manhattan distance `far_distance` or more (0 if the grid has no such pair). Upstream: `metric_lds`.
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

/// Computes the correlation-decay slope (CDS) of one image's tokens `[T, D]`, in cosine per patch.
///
/// CDS is the negative least-squares slope of the mean cosine at distance `d` over `d = 1, 2, ..`, up to
/// `max_distance` or the grid's largest distance; 0 for fewer than two distances. Upstream:
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

/// Computes the mean cosine of one image's tokens `[T, D]` at Manhattan distances 1, 2, ... up to the grid's
/// largest.
///
/// [`cds`] fits a line to this curve.
///
/// # Errors
///
/// [`MetricsError::GridMismatch`], [`MetricsError::GridTooSmall`], [`MetricsError::NonFinite`].
pub fn distance_profile(tokens: ArrayView2<'_, f32>, grid: Grid) -> Result<Vec<f64>, MetricsError> {
    Ok(profile(tokens, grid)?.means())
}

/// Computes the semantic-region self-similarity (SRSS) of one image's tokens `[T, D]`, in `[-2, 2]`.
///
/// The score of a foreground token of `mask` (`T` values, true for foreground) is its mean cosine to the other
/// foreground tokens within `near_distance`, minus its mean cosine to the background tokens at
/// `far_distance` or more. SRSS is the mean over the foreground tokens that have tokens of both types;
/// `None` if there is no such token. Upstream: `metric_srss`, which returns NaN for `None`.
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
    check_grid(grid, tokens.nrows())?;
    if mask.len() != grid.tokens() {
        return Err(MetricsError::Shape {
            what: "the foreground mask",
            found: vec![mask.len()],
            expected: vec![grid.tokens()],
        });
    }
    let unit = UnitTokens::new(tokens, SRSS_NORM_FLOOR)?;
    Ok(foreground_contrast(
        &unit.cosines(),
        grid,
        mask,
        near_distance,
        far_distance,
    ))
}

/// Computes the root mean square contrast (RMSC) of one image's tokens `[T, D]`, in `[0, 1]`.
///
/// RMSC is `sqrt(mean over t of |x_t - mean x|^2)` for tokens `x` of unit length; 0 for equal tokens. Upstream:
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
    Ok(UnitTokens::new(tokens, NORM_FLOOR)?.contrast())
}

fn profile(tokens: ArrayView2<'_, f32>, grid: Grid) -> Result<DistanceProfile, MetricsError> {
    check_grid(grid, tokens.nrows())?;
    let unit = UnitTokens::new(tokens, NORM_FLOOR)?;
    Ok(DistanceProfile::new(&unit.cosines(), grid))
}

pub(super) fn local_minus_far(profile: &DistanceProfile, far_distance: usize) -> f64 {
    // The pairs at Manhattan distance 1 are the horizontal and vertical neighbours. A grid of at least two
    // tokens has such a pair, so the first mean exists.
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

/// Computes SRSS from the cosines `[T, T]` on the grid, for the foreground `mask` `[T]`.
pub(super) fn foreground_contrast(
    cosines: &[f32],
    grid: Grid,
    mask: &[bool],
    near_distance: usize,
    far_distance: usize,
) -> Option<f64> {
    Arch::new().dispatch(ForegroundContrast {
        cosines,
        grid,
        mask,
        near_distance,
        far_distance,
    })
}

struct ForegroundContrast<'a> {
    cosines: &'a [f32],
    grid: Grid,
    mask: &'a [bool],
    near_distance: usize,
    far_distance: usize,
}

impl WithSimd for ForegroundContrast<'_> {
    type Output = Option<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Option<f64> {
        let Grid { width, .. } = self.grid;
        let background: Vec<f64> = self.mask.iter().map(|&fg| f64::from(!fg)).collect();
        let column_distances: Vec<f64> = (0..width)
            .flat_map(|x| (0..width).map(move |other_x| x.abs_diff(other_x) as f64))
            .collect();
        // One entry per column of the background tokens.
        let (mut sums, mut counts) = (vec![0.0; width], vec![0.0; width]);
        let (mut total, mut anchors) = (0.0, 0_u64);
        for anchor in (0..self.mask.len()).filter(|&t| self.mask[t]) {
            let Some(near) = self.near_mean(anchor) else {
                continue;
            };
            let (y, x) = self.grid.position(anchor);
            let column_distances = &column_distances[x * width..][..width];
            sums.fill(0.0);
            counts.fill(0.0);
            let cosines = self.row(anchor).chunks_exact(width);
            for (other_y, (cosines, background)) in
                cosines.zip(background.chunks_exact(width)).enumerate()
            {
                let min_distance = self.far_distance.saturating_sub(y.abs_diff(other_y)) as f64;
                let sums = sums.iter_mut().zip(&mut counts);
                let tokens = cosines.iter().zip(background).zip(column_distances);
                for ((sum, count), ((&cosine, &background), &distance)) in sums.zip(tokens) {
                    let far = if distance >= min_distance {
                        background
                    } else {
                        0.0
                    };
                    *sum += far * f64::from(cosine);
                    *count += far;
                }
            }
            let count: f64 = counts.iter().sum();
            if count > 0.0 {
                total += near - sums.iter().sum::<f64>() / count;
                anchors += 1;
            }
        }
        (anchors > 0).then(|| total / anchors as f64)
    }
}

impl ForegroundContrast<'_> {
    /// Returns the cosines of a token with all tokens.
    fn row(&self, token: usize) -> &[f32] {
        let count = self.grid.tokens();
        &self.cosines[token * count..][..count]
    }

    /// Computes the mean cosine to the other foreground tokens within the near distance; `None` without such
    /// tokens.
    fn near_mean(&self, anchor: usize) -> Option<f64> {
        let Grid { height, width } = self.grid;
        let (y, x) = self.grid.position(anchor);
        let cosines = self.row(anchor);
        let (mut sum, mut count) = (0.0, 0_u64);
        for other_y in around(y, self.near_distance, height) {
            let columns = self.near_distance - y.abs_diff(other_y);
            for other_x in around(x, columns, width) {
                let other = other_y * width + other_x;
                if other != anchor && self.mask[other] {
                    sum += f64::from(cosines[other]);
                    count += 1;
                }
            }
        }
        (count > 0).then(|| sum / count as f64)
    }
}

/// Returns the range of positions in `0..side` that are at most `distance` from `position`.
fn around(position: usize, distance: usize, side: usize) -> Range<usize> {
    position.saturating_sub(distance)
        ..position
            .saturating_add(distance)
            .saturating_add(1)
            .min(side)
}
