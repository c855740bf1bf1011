//! Spatial structure of patch tokens: LDS, CDS, SRSS and RMSC.
//!
//! The four metrics of "What matters for Representation Alignment: Global Information or Spatial
//! Structure?" (arXiv 2512.10794), following upstream's `metrics/spatial_metrics.py`. Tokens are
//! row-major on a [`Grid`] (token `t = y * width + x`), distances are Manhattan distances in patches,
//! and similarity is the cosine:
//!
//! | metric | definition | high for |
//! | --- | --- | --- |
//! | [`lds`] | mean cosine of neighbours minus that of far pairs | tokens that are more similar to their neighbours |
//! | [`cds`] | negative slope of the mean cosine over the distance | similarity that decays steadily |
//! | [`srss`] | mean cosine of foreground to near foreground minus foreground to far background | tokens that separate an object from the background |
//! | [`rmsc`] | root mean square distance of unit tokens from their mean | tokens that differ within an image |
//!
//! [`evaluate()`] computes all of them for a batch and shares the matrix of cosines of each image.
//! Cosines are float32 as in upstream; sums are float64.
//!
//! [`anchor_similarity`] and [`pca_rgb`] visualise tokens.

mod check_grid;
mod evaluate;
mod grid;
mod maps;
mod mask;
mod measures;
mod similarity;

pub use evaluate::{SpatialMetrics, SpatialOptions, evaluate, evaluate_images};
pub use grid::Grid;
pub use maps::{anchor_similarity, pca_rgb};
pub use mask::patch_mask;
pub use measures::{cds, distance_profile, lds, rmsc, srss};
pub use similarity::cosine_similarity;
