//! The kernel inception distance.

use std::sync::atomic::AtomicBool;

use faer::Mat;
use ndarray::{ArrayView2, Axis};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::mean_and_deviation;
use super::moments::check_finite;
use crate::MetricsError;
use crate::error::check_interrupted;
use crate::linalg::sequential_product;

/// Options of [`kid()`]. The defaults are those of torch-fidelity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KidOptions {
    /// Number of subsets (100).
    pub subsets: usize,
    /// Samples per set in a subset, drawn without replacement (1000). A set with at most this many samples is
    /// used completely; see [`kid()`].
    pub subset_size: usize,
    /// Seed of the random subsets.
    pub seed: u64,
}

impl Default for KidOptions {
    fn default() -> Self {
        Self {
            subsets: 100,
            subset_size: 1000,
            seed: 0,
        }
    }
}

impl KidOptions {
    /// Samples per set in a subset, for sets of `real` and `fake` samples.
    pub fn size_for(&self, real: usize, fake: usize) -> usize {
        self.subset_size.min(real).min(fake)
    }
}

/// Kernel inception distance, computed over subsets.
#[derive(Debug, Clone, PartialEq)]
pub struct Kid {
    /// Mean over subsets; for equal distributions close to 0 and as often below as above it.
    pub mean: f64,
    /// Population standard deviation over subsets; `None` for a single subset.
    pub deviation: Option<f64>,
    /// Squared maximum mean discrepancy of each subset.
    pub subsets: Vec<f64>,
}

/// Estimator of the squared maximum mean discrepancy of `m` samples per set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Estimator {
    /// Uses pairs of different samples within a set and all pairs across sets. KID is defined by this estimator.
    Unbiased,
    /// Uses all pairs, including each sample with itself.
    Biased,
    /// Uses pairs of different indices, within and across sets.
    UStatistic,
}

/// Computes the kernel inception distance (Binkowski et al. 2018, arXiv 1801.01401) of features `[N, D]`: the mean
/// of the unbiased [`mmd2`] over random subsets.
///
/// If both sets have the same number of samples and at most [`subset_size`](KidOptions::subset_size), every subset
/// would consist of all samples. In this case there is one subset and no deviation. Other implementations refuse
/// sets that are smaller than a subset, and return rounding errors as the deviation of sets of that size. If only
/// one set is that small, the subsets differ only in the other set, and the deviation is that of its random draws.
///
/// # Errors
///
/// [`MetricsError::Shape`] for different numbers of features, [`MetricsError::TooFew`] for sets or
/// subsets of fewer than 2 samples, [`MetricsError::OutOfRange`] without subsets,
/// [`MetricsError::NonFinite`].
pub fn kid(
    real: ArrayView2<'_, f32>,
    fake: ArrayView2<'_, f32>,
    options: &KidOptions,
) -> Result<Kid, MetricsError> {
    kid_until(&AtomicBool::new(false), real, fake, options)
}

/// Computes [`kid`] until `interrupted` is set. The flag is read before each subset.
///
/// # Errors
///
/// As [`kid`]; [`MetricsError::Interrupted`].
pub fn kid_until(
    interrupted: &AtomicBool,
    real: ArrayView2<'_, f32>,
    fake: ArrayView2<'_, f32>,
    options: &KidOptions,
) -> Result<Kid, MetricsError> {
    let size = options.size_for(real.nrows(), fake.nrows());
    if options.subsets > 0 && size == real.nrows() && size == fake.nrows() {
        let all_rows: Vec<usize> = (0..size).collect();
        return over_subsets(interrupted, real, fake, &[(all_rows.clone(), all_rows)]);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut draw = |count| rand::seq::index::sample(&mut rng, count, size).into_vec();
    let indices: Vec<_> = (0..options.subsets)
        .map(|_| (draw(real.nrows()), draw(fake.nrows())))
        .collect();
    over_subsets(interrupted, real, fake, &indices)
}

/// Computes [`kid()`] over explicit subsets; each is a pair of row indices of `real` and of `fake`, equally many of
/// both.
///
/// # Errors
///
/// Those of [`kid()`], and [`MetricsError::OutOfRange`] for a row index beyond the samples.
pub fn kid_of_subsets(
    real: ArrayView2<'_, f32>,
    fake: ArrayView2<'_, f32>,
    subsets: &[(Vec<usize>, Vec<usize>)],
) -> Result<Kid, MetricsError> {
    over_subsets(&AtomicBool::new(false), real, fake, subsets)
}

fn over_subsets(
    interrupted: &AtomicBool,
    real: ArrayView2<'_, f32>,
    fake: ArrayView2<'_, f32>,
    subsets: &[(Vec<usize>, Vec<usize>)],
) -> Result<Kid, MetricsError> {
    if subsets.is_empty() {
        return Err(MetricsError::OutOfRange {
            what: "the number of KID's subsets",
            found: 0.0,
            allowed: "1 or more",
        });
    }
    check_finite(real)?;
    check_finite(fake)?;
    let largest = subsets.iter().map(|(rows, _)| rows.iter().max());
    let largest = largest.max().flatten().copied();
    let largest_fake = subsets.iter().map(|(_, rows)| rows.iter().max());
    let largest_fake = largest_fake.max().flatten().copied();
    for (largest, rows) in [(largest, real.nrows()), (largest_fake, fake.nrows())] {
        if let Some(row) = largest.filter(|&row| row >= rows) {
            return Err(MetricsError::OutOfRange {
                what: "a row of a subset of KID",
                found: row as f64,
                allowed: "below the number of samples",
            });
        }
    }
    let values = subsets
        .par_iter()
        .map(|(rows, fake_rows)| {
            check_interrupted(interrupted)?;
            let real = real.select(Axis(0), rows);
            let fake = fake.select(Axis(0), fake_rows);
            discrepancy(real.view(), fake.view(), Estimator::Unbiased)
        })
        .collect::<Result<Vec<f64>, _>>()?;
    let (mean, deviation) = mean_and_deviation(&values);
    Ok(Kid {
        mean,
        deviation: (values.len() > 1).then_some(deviation),
        subsets: values,
    })
}

/// Computes the squared maximum mean discrepancy of two sets of features `[m, D]` of equal size, with the
/// [`polynomial_kernel`].
///
/// # Errors
///
/// [`MetricsError::Shape`] for sets of different shape, [`MetricsError::TooFew`] for fewer than 2
/// samples, [`MetricsError::NonFinite`].
pub fn mmd2(
    real: ArrayView2<'_, f32>,
    fake: ArrayView2<'_, f32>,
    estimator: Estimator,
) -> Result<f64, MetricsError> {
    check_finite(real)?;
    check_finite(fake)?;
    discrepancy(real, fake, estimator)
}

/// Computes the kernel `k(x, y) = (x . y / D + 1)^3` of all pairs of rows of `[N, D]` and `[M, D]`, float64
/// `[N, M]`.
///
/// # Errors
///
/// [`MetricsError::Shape`] for different numbers of features.
pub fn polynomial_kernel(
    left: ArrayView2<'_, f32>,
    right: ArrayView2<'_, f32>,
) -> Result<ndarray::Array2<f64>, MetricsError> {
    check_shape(left, &[right.nrows(), left.ncols()], right)?;
    let kernel = kernel(&columns(left), &columns(right));
    Ok(ndarray::Array2::from_shape_fn(
        (left.nrows(), right.nrows()),
        |index| kernel[index],
    ))
}

fn discrepancy(
    real: ArrayView2<'_, f32>,
    fake: ArrayView2<'_, f32>,
    estimator: Estimator,
) -> Result<f64, MetricsError> {
    check_shape(real, real.shape(), fake)?;
    super::moments::check_count(real.nrows())?;
    let (real, fake) = (columns(real), columns(fake));
    let (within_real, within_fake) = (kernel(&real, &real), kernel(&fake, &fake));
    let across = kernel(&real, &fake);
    let count = across.nrows() as f64;
    let (all, different) = (count * count, count * (count - 1.0));
    let (within_real, within_fake, across) =
        (sums(&within_real), sums(&within_fake), sums(&across));
    Ok(match estimator {
        Estimator::Unbiased => {
            (within_real.off_diagonal + within_fake.off_diagonal) / different
                - 2.0 * across.all() / all
        }
        Estimator::Biased => (within_real.all() + within_fake.all() - 2.0 * across.all()) / all,
        Estimator::UStatistic => {
            (within_real.off_diagonal + within_fake.off_diagonal - 2.0 * across.off_diagonal)
                / different
        }
    })
}

/// Converts samples `[N, D]` to float64 columns `[D, N]`.
fn columns(samples: ArrayView2<'_, f32>) -> Mat<f64> {
    Mat::from_fn(samples.ncols(), samples.nrows(), |i, j| {
        f64::from(samples[(j, i)])
    })
}

/// Computes the kernel of all pairs of columns of `[D, N]` and `[D, M]`.
fn kernel(left: &Mat<f64>, right: &Mat<f64>) -> Mat<f64> {
    let dimension = left.nrows() as f64;
    let mut products = sequential_product(left.as_ref(), right.as_ref());
    for column in products.col_iter_mut() {
        for value in column.iter_mut() {
            *value = (*value / dimension + 1.0).powi(3);
        }
    }
    products
}

struct Sums {
    diagonal: f64,
    off_diagonal: f64,
}

impl Sums {
    fn all(&self) -> f64 {
        self.diagonal + self.off_diagonal
    }
}

fn sums(square: &Mat<f64>) -> Sums {
    let mut sums = Sums {
        diagonal: 0.0,
        off_diagonal: 0.0,
    };
    for j in 0..square.ncols() {
        let diagonal = square[(j, j)];
        let column: f64 = square.col(j).iter().sum();
        sums.diagonal += diagonal;
        sums.off_diagonal += column - diagonal;
    }
    sums
}

fn check_shape(
    real: ArrayView2<'_, f32>,
    expected: &[usize],
    fake: ArrayView2<'_, f32>,
) -> Result<(), MetricsError> {
    if fake.shape() != expected || real.ncols() == 0 {
        return Err(MetricsError::Shape {
            what: "the second set of features",
            found: fake.shape().to_vec(),
            expected: expected.to_vec(),
        });
    }
    Ok(())
}
