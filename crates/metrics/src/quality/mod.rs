//! How far generated images are from real ones, on features of both.
//!
//! The Frechet distance fits a Gaussian to each set and compares the two. [`Moments`] accumulates one set
//! in a single pass over its features, and [`frechet_distance`] compares two of them;
//! [`Gaussian`] keeps a set that many others are compared with. What the features are is the caller's:
//! Inception's for FID, its spatial ones for sFID, any encoder's otherwise. [`kid`] compares the same
//! features without a Gaussian, [`precision_recall`] tells fidelity from variety, and [`inception_score`]
//! needs no real images.

mod frechet;
mod gaussian;
mod inception_score;
mod kid;
mod moments;
mod precision_recall;

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

pub(crate) use moments::check_finite;

/// Mean and population standard deviation; of at least one value.
fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}
