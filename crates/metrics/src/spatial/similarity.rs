//! Unit tokens, their cosines, and the cosines' mean at each distance.

use std::borrow::Cow;

use faer::Mat;
use ndarray::{Array2, ArrayView2};
use pulp::{Arch, Simd, WithSimd};

use super::Grid;
use crate::MetricsError;
use crate::linalg::gram;

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
    let cosines = UnitTokens::new(tokens, &norms(tokens)?, NORM_FLOOR).cosines();
    let count = tokens.nrows();
    Ok(Array2::from_shape_fn((count, count), |(i, j)| {
        cosines[i * count + j]
    }))
}

/// Norm of each token of `[T, D]`, in float64 so that large float32 values do not overflow.
pub(super) fn norms(tokens: ArrayView2<'_, f32>) -> Result<Vec<f64>, MetricsError> {
    let (count, width) = tokens.dim();
    let squares = Arch::new().dispatch(Squares {
        values: &contiguous(tokens),
        count,
        width,
    });
    // In float64 the squares of finite float32 values have a finite sum.
    if let Some(t) = squares.iter().position(|square| !square.is_finite()) {
        let values = tokens.row(t);
        if let Some(channel) = values.iter().position(|value| !value.is_finite()) {
            return Err(MetricsError::NonFinite {
                what: "tokens",
                index: vec![t, channel],
                value: f64::from(values[channel]),
            });
        }
    }
    Ok(squares.into_iter().map(f64::sqrt).collect())
}

/// The values of `[T, D]`, row by row.
fn contiguous(tokens: ArrayView2<'_, f32>) -> Cow<'_, [f32]> {
    match tokens.to_slice() {
        Some(values) => Cow::Borrowed(values),
        None => Cow::Owned(tokens.iter().copied().collect()),
    }
}

/// The sum of squares of each of the tokens `[T, D]`.
struct Squares<'a> {
    values: &'a [f32],
    count: usize,
    width: usize,
}

impl WithSimd for Squares<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<f64> {
        const LANES: usize = 64;
        let mut squares = vec![0.0; self.count];
        let tokens = self.values.chunks_exact(self.width.max(1));
        for (square, token) in squares.iter_mut().zip(tokens) {
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
            *square = sums[0];
        }
        squares
    }
}

/// The tokens of one image divided by `max(norm, floor)`, as columns `[D, T]`.
pub(super) struct UnitTokens(Mat<f32>);

impl UnitTokens {
    /// From tokens `[T, D]` and their norms.
    pub(super) fn new(tokens: ArrayView2<'_, f32>, norms: &[f64], floor: f64) -> Self {
        let (count, width) = tokens.dim();
        let mut unit = Mat::zeros(width, count);
        Arch::new().dispatch(Scale {
            values: &contiguous(tokens),
            norms,
            floor,
            unit: &mut unit,
        });
        Self(unit)
    }

    /// Dot products `[T, T]` of the tokens, symmetric to the bit.
    pub(super) fn cosines(&self) -> Vec<f32> {
        gram(self.0.as_ref())
    }

    /// `sqrt(mean over t of |x_t - mean x|^2)`.
    pub(super) fn contrast(&self) -> f64 {
        Arch::new().dispatch(Contrast(&self.0))
    }
}

struct Scale<'a> {
    values: &'a [f32],
    norms: &'a [f64],
    floor: f64,
    unit: &'a mut Mat<f32>,
}

impl WithSimd for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let tokens = self.values.chunks_exact(self.unit.nrows().max(1));
        for (t, (token, norm)) in tokens.zip(self.norms).enumerate() {
            let scale = norm.max(self.floor).recip();
            for (unit, &value) in self.unit.col_as_slice_mut(t).iter_mut().zip(token) {
                *unit = (f64::from(value) * scale) as f32;
            }
        }
    }
}

struct Contrast<'a>(&'a Mat<f32>);

impl WithSimd for Contrast<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let (width, count) = self.0.shape();
        let (mut sums, mut squares) = (vec![0.0; width], vec![0.0; width]);
        for t in 0..count {
            let sums = sums.iter_mut().zip(&mut squares);
            for ((sum, square), &value) in sums.zip(self.0.col_as_slice(t)) {
                let value = f64::from(value);
                *sum += value;
                *square += value * value;
            }
        }
        // The difference of two numbers up to 1 in float64: off by 1e-15, the root by 1e-7 at most.
        let mean = |sums: f64| sums / count as f64;
        let square_mean: f64 = sums.iter().map(|&sum| mean(sum) * mean(sum)).sum();
        (mean(squares.iter().sum()) - square_mean).max(0.0).sqrt()
    }
}

/// Sum of cosines and number of pairs of tokens at each Manhattan distance.
pub(super) struct DistanceProfile {
    sums: Vec<f64>,
    pairs: Vec<u64>,
}

impl DistanceProfile {
    /// From cosines `[T, T]` of the tokens on the grid; pairs are ordered.
    pub(super) fn new(cosines: &[f32], grid: Grid) -> Self {
        let by_rows = Arch::new().dispatch(ByRows { cosines, grid });
        let mut sums = vec![0.0; grid.max_distance() + 1];
        let mut pairs = vec![0; grid.max_distance() + 1];
        for (index, sum) in by_rows.iter().enumerate() {
            let (others, other_x) = (index / grid.width, index % grid.width);
            let (rows_apart, x) = (others / grid.width, others % grid.width);
            let distance = rows_apart + x.abs_diff(other_x);
            sums[distance] += sum;
            let directions = if rows_apart == 0 { 1 } else { 2 };
            pairs[distance] += directions * (grid.height - rows_apart) as u64;
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

/// Sums of the cosines by the distance of the rows and by both columns, `[H, W, W]`: whole rows of the
/// grid are added to each other, and what is left to sort by distance is smaller by the grid's height.
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
