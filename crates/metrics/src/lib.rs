//! Metrics for encoders and generated images, on [`ndarray`] and rayon, without libtorch.
//!
//! - [`spatial`]: the spatial structure of an encoder's patch tokens. [`spatial::evaluate`] takes
//!   tokens `[B, T, D]` on a [`spatial::Grid`] and optional foreground masks. It returns the four
//!   values of [`spatial::SpatialMetrics`]: LDS, CDS, SRSS and RMSC.
//!   [`spatial::anchor_similarity`] and [`spatial::pca_rgb`] visualise tokens as maps.
//! - [`quality`]: the distance of generated images from real ones. [`quality::Moments`] accumulates
//!   features in one pass, batch by batch; [`quality::frechet_distance`] compares two of them.
//!   [`quality::kid`], [`quality::precision_recall`] and [`quality::inception_score`] are the other
//!   metrics.
//! - [`figures`]: the table of all figures, and a map of their values.
//! - [`npz`]: reads and writes files of samples and reference statistics.
//! - [`linear_probe`]: the accuracy of a linear classifier on an encoder's features.
//! - [`statistics`]: the correlation between such metrics. [`statistics::pearson`],
//!   [`statistics::spearman`] and [`statistics::fit_line`], and
//!   [`statistics::bootstrap_interval`] for confidence intervals.
//!
//! Invalid input causes a [`MetricsError`], never a panic or a silent NaN. Every result has the same
//! bits for any number of threads. Random operations take a seed.
//!
//! ```
//! use metrics::quality::{Moments, frechet_distance};
//! use metrics::spatial::{Grid, SpatialOptions, evaluate};
//! use metrics::statistics::{bootstrap_interval, pearson};
//! use ndarray::{Array2, Array3};
//!
//! // Two images of 8x8 tokens whose direction rotates slowly from left to right.
//! let grid = Grid { height: 8, width: 8 };
//! let tokens = Array3::from_shape_fn((2, grid.tokens(), 2), |(_, token, channel)| {
//!     let angle = 0.2 * (token % grid.width) as f32;
//!     if channel == 0 { angle.cos() } else { angle.sin() }
//! });
//! let spatial = evaluate(tokens.view(), grid, None, &SpatialOptions::default())?;
//! assert!(spatial.lds > 0.0 && spatial.cds > 0.0);
//! assert_eq!(spatial.srss, None); // requires masks
//!
//! // Features arrive in batches; the two sets differ by 3 in one of four dimensions.
//! let (mut real, mut fake) = (Moments::new(4), Moments::new(4));
//! for batch in 0..3 {
//!     let features = Array2::from_shape_fn((16, 4), |(i, j)| ((batch * 16 + i) * (j + 1) % 7) as f32);
//!     real.push(features.view())?;
//!     let mut shifted = features;
//!     shifted.column_mut(0).mapv_inplace(|value| value + 3.0);
//!     fake.push(shifted.view())?;
//! }
//! assert!((frechet_distance(&real, &fake)? - 9.0).abs() < 1e-9);
//!
//! // Correlation of the metric with the distance: r with a 95 % interval.
//! let (lds, fid) = ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [30.0, 24.0, 25.0, 18.0, 14.0, 12.0]);
//! let r = pearson(&lds, &fid)?;
//! let interval = bootstrap_interval(&lds, &fid, pearson, 1000, 0.95, 0)?;
//! assert!(r < -0.9 && interval.low <= r && r <= interval.high);
//! # Ok::<(), metrics::MetricsError>(())
//! ```

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod error;
pub mod figures;
mod linalg;
pub mod linear_probe;
pub mod npz;
pub mod quality;
pub mod spatial;
pub mod statistics;

pub use error::MetricsError;
