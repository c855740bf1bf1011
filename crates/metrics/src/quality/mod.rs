//! How far generated images are from real ones, on features of both.
//!
//! The Frechet distance fits a Gaussian to each set and compares the two. [`Moments`] accumulates one set
//! in a single pass over its features, and [`frechet_distance`] compares two of them;
//! [`Gaussian`] keeps a set that many others are compared with. What the features are is the caller's:
//! Inception's for FID, its spatial ones for sFID, any encoder's otherwise.

mod frechet;
mod gaussian;
mod moments;

pub use frechet::{frechet_distance, frechet_distance_of_features};
pub use gaussian::Gaussian;
pub use moments::Moments;
