//! The Frechet distance between two Gaussians.

use ndarray::ArrayView2;

use super::{Gaussian, Moments};
use crate::MetricsError;
use crate::linalg::{cross_product, nuclear_norm};

impl Gaussian {
    /// Computes the Frechet distance to another Gaussian (Heusel et al. 2017, arXiv 1706.08500):
    ///
    /// ```text
    /// d = |m_r - m_f|^2 + tr S_r + tr S_f - 2 tr (S_r S_f)^(1/2)
    /// ```
    ///
    /// The result is symmetric up to rounding and at least 0. For equal Gaussians the difference of the traces
    /// is of the order of 1e-14 times the variance and can be negative; a negative distance is set to 0.
    ///
    /// Common implementations compute the matrix square root of the product of the covariances, or the square
    /// roots of its eigenvalues. An eigenvalue that is exactly zero is computed as a rounding error of about 1e-16
    /// of the largest one, and its square root is 1e-8. With fewer samples than features, hundreds of such errors
    /// add up. This implementation avoids these square roots: for factors `S_r = A A^T` and `S_f = B B^T` the
    /// trace is the sum of the singular values of `A^T B`. Their error is 1e-16 of the largest one, even for
    /// singular values that are zero.
    ///
    /// # Errors
    ///
    /// [`MetricsError::Shape`] for different numbers of features, [`MetricsError::NoConvergence`].
    pub fn frechet_distance(&self, other: &Self) -> Result<f64, MetricsError> {
        Ok(self.frechet_terms(other)?.distance())
    }

    /// Computes the terms of [`frechet_distance`](Self::frechet_distance), which show whether two sets differ
    /// in their means or in their covariances.
    ///
    /// # Errors
    ///
    /// Those of [`frechet_distance`](Self::frechet_distance).
    pub fn frechet_terms(&self, other: &Self) -> Result<FrechetTerms, MetricsError> {
        check_same_dimension(self.dimension(), other.dimension())?;
        let means = self.mean().into_iter().zip(other.mean());
        let (real, fake) = (self.factor(), other.factor());
        Ok(FrechetTerms {
            mean: means.map(|(own, other)| (own - other).powi(2)).sum(),
            trace_real: real.squared_norm_l2(),
            trace_fake: fake.squared_norm_l2(),
            trace_root: nuclear_norm(cross_product(real.as_ref(), fake.as_ref()).as_ref())?,
        })
    }
}

/// Terms of a Frechet distance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrechetTerms {
    /// `|m_r - m_f|^2`.
    pub mean: f64,
    /// `tr S_r`.
    pub trace_real: f64,
    /// `tr S_f`.
    pub trace_fake: f64,
    /// `tr (S_r S_f)^(1/2)`.
    pub trace_root: f64,
}

impl FrechetTerms {
    /// Contribution of the covariances, `tr S_r + tr S_f - 2 tr (S_r S_f)^(1/2)`.
    pub fn covariance(&self) -> f64 {
        (self.trace_real + self.trace_fake) - 2.0 * self.trace_root
    }

    /// Frechet distance, at least 0.
    pub fn distance(&self) -> f64 {
        let sum = self.mean + self.covariance();
        // `max` would turn NaN into 0.
        if sum <= 0.0 { 0.0 } else { sum }
    }
}

/// Computes the Frechet distance between the Gaussians with these moments.
///
/// The result equals that of pytorch-fid's `calculate_frechet_distance` up to the error of that function, about
/// 1e-7 of the distance for singular covariances. To compare many sets with the same one, fit that one once with
/// [`Gaussian::from_moments`].
///
/// # Errors
///
/// [`MetricsError::Shape`] for different numbers of features, and those of [`Gaussian::from_moments`].
pub fn frechet_distance(real: &Moments, fake: &Moments) -> Result<f64, MetricsError> {
    check_same_dimension(real.dimension(), fake.dimension())?;
    let (real, fake) = rayon::join(
        || Gaussian::from_moments(real),
        || Gaussian::from_moments(fake),
    );
    real?.frechet_distance(&fake?)
}

/// Computes the Frechet distance between the Gaussians fitted to two sets of features `[N, D]`.
///
/// Uses the singular values of the features and no covariances; see [`Gaussian::from_features`].
///
/// # Errors
///
/// [`MetricsError::Shape`] for different numbers of features, and those of [`Gaussian::from_features`].
pub fn frechet_distance_of_features(
    real: ArrayView2<'_, f32>,
    fake: ArrayView2<'_, f32>,
) -> Result<f64, MetricsError> {
    check_same_dimension(real.ncols(), fake.ncols())?;
    let (real, fake) = rayon::join(
        || Gaussian::from_features(real),
        || Gaussian::from_features(fake),
    );
    real?.frechet_distance(&fake?)
}

fn check_same_dimension(real: usize, fake: usize) -> Result<(), MetricsError> {
    if real != fake {
        return Err(MetricsError::Shape {
            what: "a sample of the second set",
            found: vec![fake],
            expected: vec![real],
        });
    }
    Ok(())
}
