//! Unit tokens, their cosines, and the mean cosine at each distance.

use std::borrow::Cow;

use faer::Mat;
use ndarray::{Array2, ArrayView2};
use pulp::{Arch, Simd, WithSimd};

use super::grid::Grid;
use crate::MetricsError;
use crate::linalg::gram;

/// Lower bound of a token's norm in LDS, CDS and RMSC.
pub(super) const NORM_FLOOR: f64 = 1e-8;

/// Lower bound of a token's norm in SRSS, for which upstream uses torch's default.
pub(super) const SRSS_NORM_FLOOR: f64 = 1e-12;

/// Computes the cosine similarity `[T, T]` of every pair of the tokens `[T, D]` of one image.
///
/// A zero token has similarity 0 to every token, including itself. A token with a norm below 1e-8 is divided
/// by 1e-8, so its unit token is shorter than 1, as in upstream's metrics.
///
/// # Errors
///
/// [`MetricsError::NonFinite`].
pub fn cosine_similarity(tokens: ArrayView2<'_, f32>) -> Result<Array2<f32>, MetricsError> {
    let cosines = UnitTokens::new(tokens, NORM_FLOOR)?.cosines();
    let count = tokens.nrows();
    Ok(Array2::from_shape_fn((count, count), |(i, j)| {
        cosines[i * count + j]
    }))
}

/// Computes the norm of each of the tokens `[T, D]`, in float64 so that large float32 values do not overflow.
pub(super) fn norms(tokens: ArrayView2<'_, f32>) -> Result<Vec<f64>, MetricsError> {
    let (count, width) = tokens.dim();
    let norms = Arch::new().dispatch(Norms {
        values: &contiguous(tokens),
        count,
        width,
    });
    check_finite(tokens, &norms)?;
    Ok(norms)
}

/// Checks that all tokens are finite. It suffices to check their norms, because the squares of finite float32
/// values have a finite sum in float64.
fn check_finite(tokens: ArrayView2<'_, f32>, norms: &[f64]) -> Result<(), MetricsError> {
    let Some(t) = norms.iter().position(|norm| !norm.is_finite()) else {
        return Ok(());
    };
    let values = tokens.row(t);
    let channel = values.iter().position(|value| !value.is_finite());
    channel.map_or(Ok(()), |channel| {
        Err(MetricsError::NonFinite {
            what: "tokens",
            index: vec![t, channel],
            value: f64::from(values[channel]),
        })
    })
}

/// Returns the values of `[T, D]` in row-major order.
fn contiguous(tokens: ArrayView2<'_, f32>) -> Cow<'_, [f32]> {
    match tokens.to_slice() {
        Some(values) => Cow::Borrowed(values),
        None => Cow::Owned(tokens.iter().copied().collect()),
    }
}

#[inline(always)]
fn norm(token: &[f32]) -> f64 {
    const LANES: usize = 64;
    let mut sums = [0.0; LANES];
    for chunk in token.chunks(LANES) {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    let mut lanes = LANES;
    while lanes > 1 {
        lanes /= 2;
        let (left, right) = sums.split_at_mut(lanes);
        for (left, right) in left.iter_mut().zip(right) {
            *left += *right;
        }
    }
    sums[0].sqrt()
}

/// Computes the norms of tokens `[T, D]`.
struct Norms<'a> {
    values: &'a [f32],
    count: usize,
    width: usize,
}

impl WithSimd for Norms<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<f64> {
        let mut norms = vec![0.0; self.count];
        let tokens = self.values.chunks_exact(self.width.max(1));
        for (length, token) in norms.iter_mut().zip(tokens) {
            *length = norm(token);
        }
        norms
    }
}

/// The tokens of one image, each divided by `max(norm, floor)`.
pub(super) struct UnitTokens {
    /// The tokens as columns, `[D, T]`.
    columns: Mat<f32>,
    norms: Vec<f64>,
    contrast: f64,
}

impl UnitTokens {
    /// Normalises tokens `[T, D]`, which must be finite.
    pub(super) fn new(tokens: ArrayView2<'_, f32>, floor: f64) -> Result<Self, MetricsError> {
        let (count, width) = tokens.dim();
        let unit = Arch::new().dispatch(Normalise {
            values: &contiguous(tokens),
            count,
            width,
            floor,
        });
        check_finite(tokens, &unit.norms)?;
        Ok(unit)
    }

    /// Returns whether a nonzero token is shorter than `floor`.
    pub(super) fn any_shorter_than(&self, floor: f64) -> bool {
        self.norms.iter().any(|&norm| norm > 0.0 && norm < floor)
    }

    /// Computes the dot products `[T, T]` of the tokens; the result is exactly symmetric.
    pub(super) fn cosines(&self) -> Vec<f32> {
        gram(self.columns.as_ref())
    }

    /// `sqrt(mean over t of |x_t - mean x|^2)`.
    pub(super) fn contrast(&self) -> f64 {
        self.contrast
    }
}

/// Computes [`UnitTokens`] in a single pass.
struct Normalise<'a> {
    values: &'a [f32],
    count: usize,
    width: usize,
    floor: f64,
}

impl WithSimd for Normalise<'_> {
    type Output = UnitTokens;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> UnitTokens {
        let (count, width) = (self.count, self.width);
        let mut columns = Mat::zeros(width, count);
        let mut norms = vec![0.0; count];
        let (mut sums, mut squares) = (vec![0.0; width], vec![0.0; width]);
        let tokens = self.values.chunks_exact(width.max(1));
        for ((t, length), token) in norms.iter_mut().enumerate().zip(tokens) {
            *length = norm(token);
            let scale = length.max(self.floor).recip();
            let moments = sums.iter_mut().zip(&mut squares);
            let column = columns.col_as_slice_mut(t).iter_mut().zip(token);
            for ((sum, square), (unit, &value)) in moments.zip(column) {
                *unit = (f64::from(value) * scale) as f32;
                let unit = f64::from(*unit);
                *sum += unit;
                *square += unit * unit;
            }
        }
        // The error of this difference of two values up to 1 is 1e-15, and that of its square root at most 1e-7.
        let mean = |sum: f64| sum / count as f64;
        let square_of_mean: f64 = sums.iter().map(|&sum| mean(sum) * mean(sum)).sum();
        let mean_of_squares = mean(squares.iter().sum());
        UnitTokens {
            columns,
            norms,
            contrast: (mean_of_squares - square_of_mean).max(0.0).sqrt(),
        }
    }
}

/// Sum of cosines and number of pairs of tokens at each Manhattan distance.
pub(super) struct DistanceProfile {
    sums: Vec<f64>,
    pairs: Vec<u64>,
}

impl DistanceProfile {
    /// Sums the cosines `[T, T]` of the tokens on the grid over ordered pairs.
    pub(super) fn new(cosines: &[f32], grid: Grid) -> Self {
        let by_rows = Arch::new().dispatch(ByRows { cosines, grid });
        let mut sums = vec![0.0; grid.max_distance() + 1];
        let mut pairs = vec![0; grid.max_distance() + 1];
        for (index, sum) in by_rows.iter().enumerate() {
            let (row, other_x) = (index / grid.width, index % grid.width);
            let (rows_apart, x) = (row / grid.width, row % grid.width);
            let distance = rows_apart + x.abs_diff(other_x);
            sums[distance] += sum;
            let directions = if rows_apart == 0 { 1 } else { 2 };
            pairs[distance] += directions * (grid.height - rows_apart) as u64;
        }
        Self { sums, pairs }
    }

    /// Returns the mean cosine at distances 1, 2, ... up to the grid's largest.
    pub(super) fn means(&self) -> Vec<f64> {
        let sums_and_pairs = self.sums.iter().zip(&self.pairs).skip(1);
        sums_and_pairs.map(|(sum, &n)| sum / n as f64).collect()
    }

    /// Returns the mean cosine of all pairs at `distance` or farther; 0 without such pairs.
    pub(super) fn mean_beyond(&self, distance: usize) -> f64 {
        let start = distance.max(1);
        let sum: f64 = self.sums.iter().skip(start).sum();
        let pairs: u64 = self.pairs.iter().skip(start).sum();
        sum / pairs.max(1) as f64
    }
}

/// Sums the cosines by row distance and by both columns, `[H, W, W]`. Whole rows of the grid are added to each
/// other, so that fewer sums, by a factor of the grid's height, remain to be sorted by distance.
struct ByRows<'a> {
    cosines: &'a [f32],
    grid: Grid,
}

impl WithSimd for ByRows<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<f64> {
        let Grid { height, width } = self.grid;
        let mut sums = vec![0.0; height * width * width];
        let tokens = self.cosines.chunks_exact(self.grid.tokens());
        for (t, cosines) in tokens.enumerate() {
            let (y, x) = self.grid.position(t);
            let lines = cosines.chunks_exact(width);
            for (other_y, line) in lines.enumerate() {
                let first = (y.abs_diff(other_y) * width + x) * width;
                for (sum, &cosine) in sums[first..first + width].iter_mut().zip(line) {
                    *sum += f64::from(cosine);
                }
            }
        }
        sums
    }
}
