//! What a study of encoders and generators measures, on [`ndarray`] and rayon, without libtorch.
//!
//! - [`spatial`]: how much spatial structure an encoder's patch tokens have. [`spatial::evaluate`]
//!   takes tokens `[B, T, D]` on a [`spatial::Grid`], with a foreground mask for each image if there
//!   is one, and returns the four numbers of [`spatial::SpatialMetrics`]: LDS, CDS, SRSS, RMSC.
//!   [`spatial::anchor_similarity`] and [`spatial::pca_rgb`] make maps of them to look at.
//! - [`quality`]: how far generated images are from real ones. [`quality::Moments`] takes features in
//!   one pass, batch by batch; [`quality::frechet_distance`] compares two of them.
//!   [`quality::kid`], [`quality::precision_recall`] and [`quality::inception_score`] are the others.
//! - [`npz`]: the files in which samples and reference statistics go around.
//! - [`linear_probe`]: how well a linear classifier on an encoder's features does.
//! - [`statistics`]: whether one of those numbers predicts another. [`statistics::pearson`],
//!   [`statistics::spearman`], [`statistics::fit_line`], and
//!   [`statistics::bootstrap_interval`] around any of them.
//!
//! Bad input is a [`MetricsError`], never a panic or a silent NaN. Every result has the same bits for
//! any number of threads, and what is random takes a seed.
//!
//! ```
//! use metrics::quality::{Moments, frechet_distance};
//! use metrics::spatial::{Grid, SpatialOptions, evaluate};
//! use metrics::statistics::{bootstrap_interval, pearson};
//! use ndarray::{Array2, Array3};
//!
//! // Two images of 8x8 tokens whose direction turns slowly from left to right.
//! let grid = Grid { height: 8, width: 8 };
//! let tokens = Array3::from_shape_fn((2, grid.tokens(), 2), |(_, token, channel)| {
//!     let angle = 0.2 * (token % grid.width) as f32;
//!     if channel == 0 { angle.cos() } else { angle.sin() }
//! });
//! let spatial = evaluate(tokens.view(), grid, None, &SpatialOptions::default())?;
//! assert!(spatial.lds > 0.0 && spatial.cds > 0.0);
//! assert_eq!(spatial.srss, None); // needs masks
//!
//! // Features come in batches; the two sets differ by 3 in one of four dimensions.
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
//! // Does the metric predict the distance? r with a 95 % interval.
//! let (lds, fid) = ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [30.0, 24.0, 25.0, 18.0, 14.0, 12.0]);
//! let r = pearson(&lds, &fid)?;
//! let interval = bootstrap_interval(&lds, &fid, pearson, 1000, 0.95, 0)?;
//! assert!(r < -0.9 && interval.low <= r && r <= interval.high);
//! # Ok::<(), metrics::MetricsError>(())
//! ```

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod error;
mod linalg;
pub mod linear_probe;
pub mod npz;
pub mod quality;
pub mod spatial;
pub mod statistics;

pub use error::MetricsError;
