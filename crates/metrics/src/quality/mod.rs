//! Quality of generated images, measured on features of generated and real images.
//!
//! The Frechet distance fits a Gaussian to each set and compares the Gaussians. [`Moments`] accumulates a
//! set in a single pass over its features, and [`frechet_distance`] compares two of them.
//! [`Gaussian`] stores a set that is compared with many others. The caller chooses the features:
//! those of Inception for FID, its spatial features for sFID, or those of any encoder. [`kid`] compares the same
//! features without fitting a Gaussian, [`precision_recall`] separates fidelity from diversity, and
//! [`inception_score`] requires no real images.

mod frechet;
mod gaussian;
mod inception_score;
mod kid;
mod moments;
mod precision_recall;
mod sample_metric;

pub use frechet::{FrechetTerms, frechet_distance, frechet_distance_of_features};
pub use gaussian::Gaussian;
pub use inception_score::{InceptionScore, InceptionScores, Shuffled, Splits, inception_score};
pub use kid::{
    Estimator, Kid, KidOptions, kid, kid_of_subsets, kid_until, mmd2, polynomial_kernel,
};
pub use moments::Moments;
pub use precision_recall::{
    Manifolds, PrecisionRecall, manifolds, precision_recall, precision_recall_until,
};
pub use sample_metric::SampleMetric;

pub(crate) use moments::check_finite;

/// Computes the mean and the population standard deviation of at least one value.
fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}
