//! What is measured of encoders and samples.
//!
//! [`evaluate`] takes an [`ImageSet`] of samples and a [`Reference`] and gives a [`QualityReport`]: FID, sFID,
//! Inception score, KID, precision and recall, from one pass with an [`Extractor`]. A sweep's cells are
//! measured by [`Judges`], their encoders by [`spatial_metrics`] and [`probe`].

mod classes;
mod features;
mod images;
mod judges;
mod measure;
mod probe;
mod quality;
mod statistics;

pub use classes::{ReferenceClasses, uses_reference_classes};
pub use features::{Extractor, Features};
pub use images::{Batches, ImageOptions, ImageSet};
pub use judges::{JudgeStage, Judges};
pub use measure::{Measured, Pass, Wanted, measure};
pub use probe::{ProbeAccuracy, ProbeData, probe};
pub use quality::{
    FeatureReport, Metric, QualityOptions, QualityReport, Results, Scoring, SetReport, Stage,
    evaluate,
};
pub use statistics::{Reference, ReferenceStatistics};

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use data::{Batch, DataError, Dataset};
use encoders::{Encoder, EncoderError};
use metrics::MetricsError;
use metrics::npz::NpzError;
use metrics::spatial::{Grid, SpatialMetrics, SpatialOptions, evaluate_images, patch_mask};
use ndarray::{Array2, ArrayView2, ArrayView3};
use tch::{Device, TchError};
use thiserror::Error;
use training::{Config, TrainError, images_to_device};

use crate::tensors;

/// Images that an encoder sees at once.
const BATCH: usize = 32;

/// Why something could not be measured.
#[derive(Debug, Error)]
pub enum EvaluationError {
    /// The images could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The encoder failed.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// The metric cannot be computed.
    #[error(transparent)]
    Metrics(MetricsError),
    /// The images could not be moved to the device.
    #[error(transparent)]
    Train(TrainError),
    /// libtorch failed.
    #[error(transparent)]
    Tch(#[from] TchError),
    /// An `.npz` file is not what it must be.
    #[error(transparent)]
    Npz(#[from] NpzError),
    /// An image file cannot be read.
    #[error("{}: {reason}; sample it again or remove it", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no image.
    #[error("{} holds no image", path.display())]
    NoImages {
        /// The folder or file.
        path: PathBuf,
    },
    /// An image, or a set, has another size than it must have.
    #[error(
        "{} has {} x {} pixels (height x width), {} x {} are needed: {way_out}",
        path.display(), found.0, found.1, expected.0, expected.1
    )]
    Size {
        /// The image or set.
        path: PathBuf,
        /// Its height and width.
        found: (u32, u32),
        /// The size needed.
        expected: (u32, u32),
        /// What to do.
        way_out: &'static str,
    },
    /// A reference file has neither statistics nor images.
    #[error(
        "{} holds neither statistics (mu, sigma) nor images (arr_0), only {found}",
        path.display()
    )]
    NoStatistics {
        /// The file.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// Statistics are of other features.
    #[error(
        "`{name}` of {} is of {found} features, but the network gives {expected}: it was computed with \
         another network",
        path.display()
    )]
    Width {
        /// The file.
        path: PathBuf,
        /// The array.
        name: &'static str,
        /// Its number of features.
        found: usize,
        /// That of the network.
        expected: usize,
    },
    /// A label beyond the classes of its data set.
    #[error("{dataset} has an image of class {label}, and no such class")]
    Label {
        /// The data set.
        dataset: String,
        /// The label.
        label: i64,
    },
    /// A measure that was asked for cannot be computed.
    #[error("{metric} cannot be computed: {reason}")]
    NotAllowed {
        /// The measure.
        metric: Metric,
        /// Why.
        reason: String,
    },
    /// The user stopped it.
    #[error("interrupted; the same command begins again and gives the same result")]
    Interrupted,
}

impl From<TrainError> for EvaluationError {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Interrupted => Self::Interrupted,
            error => Self::Train(error),
        }
    }
}

impl From<MetricsError> for EvaluationError {
    fn from(error: MetricsError) -> Self {
        match error {
            MetricsError::Interrupted => Self::Interrupted,
            error => Self::Metrics(error),
        }
    }
}

/// `Err` once `interrupted` is set.
fn go_on(interrupted: &AtomicBool) -> Result<(), EvaluationError> {
    match interrupted.load(Ordering::Relaxed) {
        true => Err(EvaluationError::Interrupted),
        false => Ok(()),
    }
}

impl EvaluationError {
    /// Whether the call was wrong, rather than its execution: what is measured cannot be measured so.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NoImages { .. }
                | Self::Size { .. }
                | Self::NoStatistics { .. }
                | Self::Width { .. }
                | Self::NotAllowed { .. }
        )
    }
}

/// The images at `indices`, a few at a time.
fn batches<'a>(
    dataset: &'a Arc<dyn Dataset>,
    indices: &'a [u64],
    config: &'a Config,
) -> impl Iterator<Item = Result<Batch, DataError>> + 'a {
    let data = &config.data;
    indices
        .chunks(BATCH)
        .map(|chunk| data::read_batch(dataset.as_ref(), chunk, data.resolution, data.background))
}

/// `count` of `total` indices: data sets are often sorted by class, so the first ones would not do.
pub fn evenly_spaced(count: u64, total: u64) -> Vec<u64> {
    (0..count).map(|index| index * total / count).collect()
}

fn limit(dataset: &Arc<dyn Dataset>, wanted: usize) -> u64 {
    match wanted as u64 {
        0 => dataset.len(),
        wanted => wanted.min(dataset.len()),
    }
}

/// LDS, CDS, SRSS and RMSC of an encoder over `count` images of a data set. Alpha
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
        let seen = images_to_device(&batch, device)?;
        let tokens = features::encode(encoder, &seen, device, interrupted)?.patch;
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

/// Masks `[B, R, R]` of bytes to patches `[B, T]`.
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
