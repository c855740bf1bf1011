//! Computes the spatial metrics of an encoder on the images of a data set.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use data::{Dataset, evenly_spaced};
use encoders::Encoder;
use metrics::spatial::{Grid, SpatialMetrics, SpatialOptions, evaluate_images, patch_mask};
use ndarray::{Array2, ArrayView2, ArrayView3};
use tch::{Device, TchError};
use training::{Config, images_to_device};

use crate::error::EvaluationError;
use crate::subset::batches;
use crate::{features, tensors};

/// Computes the mean LDS, CDS, SRSS and RMSC of an encoder over `count` evenly spaced images of a data set. Alpha
/// channels are the foreground masks of SRSS.
///
/// # Errors
/// An image cannot be read, the encoder failed, a token is not finite, or `interrupted` was set.
pub fn spatial_metrics(
    encoder: &dyn Encoder,
    dataset: &Arc<dyn Dataset>,
    config: &Config,
    count: usize,
    device: Device,
    interrupted: &AtomicBool,
) -> Result<SpatialMetrics, EvaluationError> {
    let shape = encoder.spec().grid;
    let grid = Grid {
        height: shape.height,
        width: shape.width,
    };
    let total = dataset.len();
    let count = (count as u64).min(total);
    let indices = evenly_spaced(count, total);
    let mut images = Vec::new();
    for batch in batches(dataset, &indices, config) {
        let batch = batch?;
        let pixels = images_to_device(&batch, device)?;
        let tokens = features::encode(encoder, &pixels, device, interrupted)?.patch;
        let tokens = tensors::array3(&tokens)?;
        let masks = batch
            .masks
            .as_ref()
            .map(|masks| foreground(masks, batch.len(), batch.resolution as usize, grid))
            .transpose()?;
        images.extend(evaluate_images(
            ArrayView3::from(&tokens),
            grid,
            masks.as_ref().map(|masks| masks.view()),
            &SpatialOptions::default(),
        )?);
    }
    Ok(SpatialMetrics::mean(&images)?)
}

/// Converts pixel masks u8 `[B, R, R]` to patch masks `[B, T]`.
fn foreground(
    masks: &[u8],
    count: usize,
    side: usize,
    grid: Grid,
) -> Result<Array2<bool>, EvaluationError> {
    let mut patches = Vec::new();
    for mask in masks.chunks_exact((side * side).max(1)) {
        let pixels = ArrayView2::from_shape((side, side), mask)
            .map_err(|error| TchError::Shape(error.to_string()))?;
        patches.extend(patch_mask(pixels, grid)?);
    }
    Ok(Array2::from_shape_vec((count, grid.tokens()), patches)
        .map_err(|error| TchError::Shape(error.to_string()))?)
}
