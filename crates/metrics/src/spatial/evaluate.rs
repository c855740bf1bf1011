//! Computes all four spatial metrics for a batch of images.

use ndarray::{ArrayView1, ArrayView2, ArrayView3, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::check_grid::check_grid;
use super::grid::Grid;
use super::measures::{decay, foreground_contrast, local_minus_far};
use super::similarity::{DistanceProfile, NORM_FLOOR, SRSS_NORM_FLOOR, UnitTokens};
use crate::MetricsError;
use crate::figures::{Figure, Figures};

/// Distance limits of the spatial metrics, in patches. The defaults are those of upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpatialOptions {
    /// LDS: pairs at this distance or more are far (6).
    pub lds_far_distance: usize,
    /// CDS: the line is fitted to distances from 1 to this (8).
    pub cds_max_distance: usize,
    /// SRSS: foreground tokens from distance 1 to this are near (1).
    pub srss_near_distance: usize,
    /// SRSS: background tokens at this distance or more are far (6).
    pub srss_far_distance: usize,
}

impl Default for SpatialOptions {
    fn default() -> Self {
        Self {
            lds_far_distance: 6,
            cds_max_distance: 8,
            srss_near_distance: 1,
            srss_far_distance: 6,
        }
    }
}

/// The spatial metrics of one image, or their mean over images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SpatialMetrics {
    /// Local-vs-distant similarity ([`lds`](super::lds)).
    pub lds: f64,
    /// Correlation-decay slope ([`cds`](super::cds)).
    pub cds: f64,
    /// Semantic-region self-similarity ([`srss`](super::srss)); `None` without a mask, or if the mask has no
    /// foreground token to compare.
    pub srss: Option<f64>,
    /// Root mean square contrast ([`rmsc`](super::rmsc)).
    pub rmsc: f64,
}

impl SpatialMetrics {
    /// Computes the mean over images, in order. Images without SRSS are excluded from the mean of SRSS only; it
    /// is `None` if no image has a value.
    ///
    /// For the mean over several batches, collect the results of [`evaluate_images`] first.
    ///
    /// # Errors
    ///
    /// [`MetricsError::TooFew`] without images.
    pub fn mean(images: &[Self]) -> Result<Self, MetricsError> {
        if images.is_empty() {
            return Err(MetricsError::TooFew {
                what: "the batch",
                unit: "images",
                found: 0,
                needed: 1,
            });
        }
        let mean =
            |metric: fn(&Self) -> f64| images.iter().map(metric).sum::<f64>() / images.len() as f64;
        let srss: Vec<f64> = images.iter().filter_map(|image| image.srss).collect();
        Ok(Self {
            lds: mean(|image| image.lds),
            cds: mean(|image| image.cds),
            srss: (!srss.is_empty()).then(|| srss.iter().sum::<f64>() / srss.len() as f64),
            rmsc: mean(|image| image.rmsc),
        })
    }

    /// The metrics as figures.
    pub fn figures(&self) -> Figures {
        let mut figures = Figures::from([
            (Figure::Lds, self.lds),
            (Figure::Cds, self.cds),
            (Figure::Rmsc, self.rmsc),
        ]);
        figures.set(Figure::Srss, self.srss);
        figures
    }
}

/// Computes the means of the four metrics over the images of `tokens` `[B, T, D]`.
///
/// `masks` `[B, T]` is true for patches that contain foreground ([`patch_mask`](super::patch_mask)); SRSS requires
/// it. Images are distributed over rayon's threads; the result does not depend on their number. Upstream:
/// `compute_spatial_metrics`.
///
/// # Errors
///
/// Those of [`evaluate_images`], and [`MetricsError::TooFew`] without images.
pub fn evaluate(
    tokens: ArrayView3<'_, f32>,
    grid: Grid,
    masks: Option<ArrayView2<'_, bool>>,
    options: &SpatialOptions,
) -> Result<SpatialMetrics, MetricsError> {
    SpatialMetrics::mean(&evaluate_images(tokens, grid, masks, options)?)
}

/// Computes the four metrics of each image of `tokens` `[B, T, D]`; see [`evaluate()`] for the arguments.
///
/// # Errors
///
/// [`MetricsError::GridMismatch`] and [`MetricsError::GridTooSmall`] for an unsuitable grid,
/// [`MetricsError::Shape`] for masks that are not `[B, T]`, [`MetricsError::NonFinite`] for the first
/// token that is not finite, with the index of its image.
pub fn evaluate_images(
    tokens: ArrayView3<'_, f32>,
    grid: Grid,
    masks: Option<ArrayView2<'_, bool>>,
    options: &SpatialOptions,
) -> Result<Vec<SpatialMetrics>, MetricsError> {
    let (images, count, _) = tokens.dim();
    check_grid(grid, count)?;
    if let Some(masks) = masks
        && masks.dim() != (images, count)
    {
        return Err(MetricsError::Shape {
            what: "the array of foreground masks",
            found: masks.shape().to_vec(),
            expected: vec![images, count],
        });
    }
    let metrics: Vec<_> = (0..images)
        .into_par_iter()
        .map(|image| {
            let mask = masks.as_ref().map(|masks| masks.row(image));
            image_metrics(tokens.index_axis(Axis(0), image), grid, mask, options)
        })
        .collect();
    // Sequential, so that the error is that of the first invalid image for any number of threads.
    let add_image_index = |(image, metrics): (usize, Result<_, _>)| {
        metrics.map_err(|error| match error {
            MetricsError::NonFinite {
                what,
                mut index,
                value,
            } => {
                index.insert(0, image);
                MetricsError::NonFinite { what, index, value }
            }
            other => other,
        })
    };
    metrics
        .into_iter()
        .enumerate()
        .map(add_image_index)
        .collect()
}

fn image_metrics(
    tokens: ArrayView2<'_, f32>,
    grid: Grid,
    mask: Option<ArrayView1<'_, bool>>,
    options: &SpatialOptions,
) -> Result<SpatialMetrics, MetricsError> {
    let unit = UnitTokens::new(tokens, NORM_FLOOR)?;
    let cosines = unit.cosines();
    let profile = DistanceProfile::new(&cosines, grid);
    let srss = match mask {
        Some(mask) => {
            let mask: Vec<bool> = mask.iter().copied().collect();
            let (near, far) = (options.srss_near_distance, options.srss_far_distance);
            // The two floors only matter for very short tokens; without such tokens the cosines can be shared.
            let srss_cosines = match unit.any_shorter_than(NORM_FLOOR) {
                true => Some(UnitTokens::new(tokens, SRSS_NORM_FLOOR)?.cosines()),
                false => None,
            };
            foreground_contrast(
                srss_cosines.as_ref().unwrap_or(&cosines),
                grid,
                &mask,
                near,
                far,
            )
        }
        None => None,
    };
    Ok(SpatialMetrics {
        lds: local_minus_far(&profile, options.lds_far_distance),
        cds: decay(&profile, options.cds_max_distance),
        srss,
        rmsc: unit.contrast(),
    })
}
