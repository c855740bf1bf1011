//! A Gaussian fitted to features, in the form that the Frechet distance requires.

use faer::Mat;
use ndarray::{ArrayView1, ArrayView2, aview1};

use super::moments::{Moments, check_count, check_finite, feature_means};
use crate::MetricsError;
use crate::linalg::{qr_upper, symmetric_eigen};

/// Largest negative eigenvalue that is accepted, relative to the largest eigenvalue. Rounding and storage in float32
/// cause smaller ones.
const NEGATIVE_TOLERANCE: f64 = 1e-3;

/// Mean `[D]` and a factor `A` `[D, r]` of the covariance `A A^T`, where `r` is at least its rank.
///
/// Computing the factor is about half the cost of a Frechet distance. A reference for many sets can be
/// fitted once, with [`from_moments`](Self::from_moments) or
/// [`from_features`](Self::from_features), and compared with each set by
/// [`frechet_distance`](Self::frechet_distance).
#[derive(Debug, Clone)]
pub struct Gaussian {
    mean: Vec<f64>,
    factor: Mat<f64>,
}

impl Gaussian {
    /// Creates the Gaussian with these moments.
    ///
    /// The covariance of `N` samples has at most `N - 1` nonzero eigenvalues. The others, and those below
    /// `D * 2.2e-16` of the largest, are rounding errors and are dropped. A singular covariance therefore loses
    /// no precision and needs no constant on its diagonal. A nearly singular covariance loses some: the absolute
    /// error of an eigenvalue is 1e-16 of the largest. If the eigenvalue is `p` times the largest, the error of
    /// its square root, which enters the distance, is up to `1e-16 / sqrt(p)` of the largest square root, 1e-8 in
    /// the worst case.
    ///
    /// # Errors
    ///
    /// [`MetricsError::TooFew`] without features or with fewer than 2 samples,
    /// [`MetricsError::NotCovariance`] if a matrix passed to [`Moments::from_statistics`] has a negative
    /// eigenvalue, [`MetricsError::NoConvergence`].
    pub fn from_moments(moments: &Moments) -> Result<Self, MetricsError> {
        let dimension = moments.dimension();
        check_dimension(dimension)?;
        let (values, mut vectors) = symmetric_eigen(moments.lower_covariance()?.as_ref())?;
        let smallest = values.first().copied().unwrap_or(0.0);
        let largest = values.last().copied().unwrap_or(0.0);
        if smallest < -NEGATIVE_TOLERANCE * largest.max(0.0) {
            return Err(MetricsError::NotCovariance {
                reason: format!(
                    "its eigenvalues are in the range {smallest} to {largest}, but must not be negative"
                ),
            });
        }
        let floor = dimension as f64 * f64::EPSILON * largest;
        let rank = values.iter().filter(|&&value| value > floor).count();
        let rank = rank.min(moments.count() - 1);
        let first = dimension - rank;
        for (j, value) in values.iter().enumerate().skip(first) {
            let deviation = value.sqrt();
            vectors.col_mut(j).iter_mut().for_each(|x| *x *= deviation);
        }
        Ok(Self {
            mean: moments.mean().to_vec(),
            factor: vectors.subcols(first, rank).to_owned(),
        })
    }

    /// Fits a Gaussian to features `[N, D]`.
    ///
    /// The covariance matrix is never computed, so even a nearly singular covariance loses no precision. With
    /// fewer samples than features this method is also faster. It needs memory for two float64 copies of the
    /// features, whereas [`Moments`] need `D * D` values whatever the number of samples.
    ///
    /// # Errors
    ///
    /// [`MetricsError::TooFew`] without features or with fewer than 2 samples,
    /// [`MetricsError::NonFinite`].
    pub fn from_features(features: ArrayView2<'_, f32>) -> Result<Self, MetricsError> {
        let (count, dimension) = features.dim();
        check_dimension(dimension)?;
        check_count(count)?;
        check_finite(features)?;
        let mean = feature_means(features);
        let weight = ((count - 1) as f64).sqrt();
        let centred = Mat::from_fn(dimension, count, |i, j| {
            (f64::from(features[(j, i)]) - mean[i]) / weight
        });
        let factor = if count > dimension {
            qr_upper(centred.transpose().to_owned())
                .transpose()
                .to_owned()
        } else {
            centred
        };
        Ok(Self { mean, factor })
    }

    /// Number of features, `D`.
    pub fn dimension(&self) -> usize {
        self.mean.len()
    }

    /// Mean `[D]`.
    pub fn mean(&self) -> ArrayView1<'_, f64> {
        aview1(&self.mean)
    }

    pub(super) fn factor(&self) -> &Mat<f64> {
        &self.factor
    }
}

/// Checks that samples have at least one feature.
fn check_dimension(dimension: usize) -> Result<(), MetricsError> {
    if dimension == 0 {
        return Err(MetricsError::TooFew {
            what: "a sample",
            unit: "features",
            found: 0,
            needed: 1,
        });
    }
    Ok(())
}
