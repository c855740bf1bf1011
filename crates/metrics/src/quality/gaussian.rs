//! A Gaussian fitted to features, in the form that the Frechet distance needs.

use faer::Mat;
use ndarray::{ArrayView1, ArrayView2, aview1};

use super::moments::{Moments, check_count, check_finite, feature_means};
use crate::MetricsError;
use crate::linalg::{qr_upper, symmetric_eigen};

/// A negative eigenvalue of more than this part of the largest is not rounding, nor storage in float32.
const NEGATIVE_EIGENVALUE: f64 = 1e-3;

/// Mean `[D]` and a factor `A` `[D, r]` of the covariance `A A^T`, where `r` is at least its rank.
///
/// Finding the factor is about half of a Frechet distance's cost. A reference that many sets are compared with
/// is fitted once, with [`from_moments`](Self::from_moments) or
/// [`from_features`](Self::from_features), and compared by
/// [`frechet_distance`](Self::frechet_distance).
#[derive(Debug, Clone)]
pub struct Gaussian {
    mean: Vec<f64>,
    factor: Mat<f64>,
}

impl Gaussian {
    /// The Gaussian with these moments.
    ///
    /// A covariance of `N` samples has at most `N - 1` eigenvalues that are not zero; the others, and
    /// those below `D * 2.2e-16` of the largest, are rounding and are left out. So a singular covariance costs
    /// no digits, and needs no constant added to its diagonal. A nearly singular one does cost some: an
    /// eigenvalue that is a part `p` of the largest is known to 1e-16 of the largest, so its root, which
    /// the distance adds up, is off by up to `1e-16 / sqrt(p)` of the largest's root, 1e-8 at worst.
    ///
    /// # Errors
    ///
    /// [`MetricsError::TooFew`] without features or with fewer than 2 samples,
    /// [`MetricsError::NotCovariance`] after [`Moments::from_statistics`] of a matrix that has a
    /// negative eigenvalue, [`MetricsError::NoConvergence`].
    pub fn from_moments(moments: &Moments) -> Result<Self, MetricsError> {
        let dimension = moments.dimension();
        check_dimension(dimension)?;
        let (values, mut vectors) = symmetric_eigen(moments.lower_covariance()?.as_ref())?;
        let smallest = values.first().copied().unwrap_or(0.0);
        let largest = values.last().copied().unwrap_or(0.0);
        if smallest < -NEGATIVE_EIGENVALUE * largest.max(0.0) {
            return Err(MetricsError::NotCovariance {
                reason: format!(
                    "its eigenvalues run from {smallest} to {largest}, and none may be negative"
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

    /// The Gaussian fitted to features `[N, D]`.
    ///
    /// The covariance is never formed, so nearly singular ones keep their digits too; with fewer samples
    /// than features this is also the faster way. Takes two float64 copies of the features, where [`Moments`]
    /// need `D * D` numbers however many samples there are.
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

/// Refuses samples without features.
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
