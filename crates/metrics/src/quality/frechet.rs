//! The Frechet distance between two Gaussians.

use ndarray::ArrayView2;

use super::{Gaussian, Moments};
use crate::MetricsError;
use crate::linalg::{cross_product, nuclear_norm};

impl Gaussian {
    /// Frechet distance to another Gaussian (Heusel et al. 2017, arXiv 1706.08500):
    ///
    /// ```text
    /// d = |m_r - m_f|^2 + tr S_r + tr S_f - 2 tr (S_r S_f)^(1/2)
    /// ```
    ///
    /// Symmetric, up to rounding, and at least 0: the difference of the traces of equal Gaussians is of the
    /// order of 1e-14 times the variance and may be negative, which is taken for 0.
    ///
    /// The usual implementations take the root of the product of the covariances, or the roots of its
    /// eigenvalues. An eigenvalue that is zero in truth comes out at rounding level, 1e-16 of the largest,
    /// and its root counts 1e-8: with fewer samples than features, hundreds of them add up. Here no
    /// such root is taken: for factors `S_r = A A^T` and `S_f = B B^T` the trace is the sum of the
    /// singular values of `A^T B`, which have an error of 1e-16 of the largest, zero ones too.
    ///
    /// # Errors
    ///
    /// [`MetricsError::Shape`] for different numbers of features, [`MetricsError::NoConvergence`].
    pub fn frechet_distance(&self, other: &Self) -> Result<f64, MetricsError> {
        Ok(self.frechet_terms(other)?.distance())
    }

    /// The terms of [`frechet_distance`](Self::frechet_distance), which tell whether two sets differ in
    /// their means or in their covariances.
    ///
    /// # Errors
    ///
    /// As [`frechet_distance`](Self::frechet_distance).
    pub fn frechet_terms(&self, other: &Self) -> Result<FrechetTerms, MetricsError> {
        check_same_dimension(self.dimension(), other.dimension())?;
        let means = self.mean().into_iter().zip(other.mean());
        let (own, fake) = (self.factor(), other.factor());
        Ok(FrechetTerms {
            mean: means.map(|(own, other)| (own - other).powi(2)).sum(),
            trace_real: own.squared_norm_l2(),
            trace_fake: fake.squared_norm_l2(),
            trace_root: nuclear_norm(cross_product(own.as_ref(), fake.as_ref()).as_ref())?,
        })
    }
}

/// What a Frechet distance is the sum of.
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
    /// `tr S_r + tr S_f - 2 tr (S_r S_f)^(1/2)`, what the covariances add.
    pub fn covariance(&self) -> f64 {
        (self.trace_real + self.trace_fake) - 2.0 * self.trace_root
    }

    /// The distance, at least 0.
    pub fn distance(&self) -> f64 {
        let sum = self.mean + self.covariance();
        // Not `max`, which would make 0 of NaN.
        if sum <= 0.0 { 0.0 } else { sum }
    }
}

/// Frechet distance between the Gaussians with these moments.
///
/// As pytorch-fid's `calculate_frechet_distance` up to that function's own error, about 1e-7 of the distance
/// for singular covariances. To compare many sets with one, fit that one once:
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

/// Frechet distance between the Gaussians fitted to two sets of features `[N, D]`.
///
/// From the singular values of the features, without covariances; see [`Gaussian::from_features`].
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
