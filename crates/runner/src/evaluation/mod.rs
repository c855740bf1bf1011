//! What is measured of encoders and samples.
//!
//! [`evaluate`] takes an [`ImageSet`] of samples and a reference and gives a [`QualityReport`]: FID, sFID,
//! Inception score, KID, precision and recall, from one pass with an [`Extractor`]. A sweep's cells are
//! measured by [`Reference`] and [`spatial_metrics`].

mod features;
mod images;
mod measure;
mod quality;
mod statistics;

pub use features::{Extractor, Features};
pub use images::{Batches, ImageOptions, ImageSet};
pub use measure::{Measured, Wanted, measure};
pub use quality::{
    FeatureReport, Metric, QualityOptions, QualityReport, Results, SetReport, Stage, evaluate,
};
pub use statistics::{ReferenceOptions, ReferenceStatistics, reference};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::{Batch, DataError, Dataset};
use encoders::{Encoder, EncoderError};
use metrics::MetricsError;
use metrics::npz::NpzError;
use metrics::quality::{Moments, frechet_distance};
use metrics::spatial::{Grid, SpatialMetrics, SpatialOptions, evaluate_images, patch_mask};
use ndarray::{Array2, ArrayView2, ArrayView3};
use tch::{Device, TchError, Tensor};
use thiserror::Error;
use training::{Config, TrainError, images_to_device, read_tensors};

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
    Metrics(#[from] MetricsError),
    /// The images could not be moved to the device.
    #[error(transparent)]
    Train(#[from] TrainError),
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

/// Features and labels of real images, that samples are compared with.
#[derive(Debug, Clone)]
pub struct Reference {
    /// Mean and covariance of the features.
    pub moments: Moments,
    /// Classes of the images, so that samples can have the same.
    pub labels: Vec<i64>,
}

/// Mean-pooled patch tokens `[N, D]` of images u8 `[N, 3, H, W]`, in batches.
///
/// # Errors
/// The encoder failed.
pub fn pooled_features(
    encoder: &dyn Encoder,
    images: &Tensor,
    device: Device,
    mut progress: impl FnMut(usize),
) -> Result<Array2<f32>, EvaluationError> {
    let count = images.size().first().copied().unwrap_or(0);
    let mut rows = Vec::new();
    for start in (0..count).step_by(BATCH) {
        let length = (count - start).min(BATCH as i64);
        let batch = images.f_narrow(0, start, length)?.f_to_device(device)?;
        rows.push(features::pooled_tokens(encoder, &batch)?);
        progress(length as usize);
    }
    Ok(tensors::array2(&Tensor::f_cat(&rows, 0)?)?)
}

impl Reference {
    /// Features of `evaluate.reference_images` images of the data set, all when 0.
    /// They are kept in `cache` and read from there when it is of the same `key`.
    ///
    /// # Errors
    /// An image cannot be read, or the encoder failed.
    pub fn compute(
        encoder: &dyn Encoder,
        dataset: &Arc<dyn Dataset>,
        config: &Config,
        device: Device,
        cache: &Path,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, EvaluationError> {
        if let Some(cached) = read_cache(cache) {
            return Self::from_features(cached.0.view(), cached.1);
        }
        let total = limit(dataset, config.evaluate.reference_images);
        let mut rows = Vec::new();
        let mut labels = Vec::new();
        let mut width = 0;
        let indices = evenly_spaced(total, dataset.len());
        for batch in batches(dataset, &indices, config) {
            let batch = batch?;
            labels.extend_from_slice(&batch.labels);
            let images = images_to_device(&batch, device)?;
            let features = pooled_features(encoder, &images, device, |_| {})?;
            width = features.ncols();
            rows.extend(features);
            progress(labels.len(), total as usize);
        }
        let features = Array2::from_shape_vec((labels.len(), width), rows)
            .map_err(|error| TchError::Shape(error.to_string()))?;
        write_cache(cache, &features, &labels);
        Self::from_features(features.view(), labels)
    }

    fn from_features(features: ArrayView2<f32>, labels: Vec<i64>) -> Result<Self, EvaluationError> {
        let mut moments = Moments::new(features.ncols());
        moments.push(features)?;
        Ok(Self { moments, labels })
    }

    /// The Frechet distance of samples, given their features `[N, D]`.
    ///
    /// # Errors
    /// Too few samples, or features that are not finite.
    pub fn distance(&self, samples: ArrayView2<f32>) -> Result<f64, EvaluationError> {
        let mut moments = Moments::new(samples.ncols());
        moments.push(samples)?;
        Ok(frechet_distance(&self.moments, &moments)?)
    }

    /// `count` labels with the frequencies of the real images.
    pub fn labels(&self, count: usize) -> Vec<i64> {
        // Evenly spaced over the images, which a folder or a data set often has sorted by class.
        let total = self.labels.len().max(1);
        (0..count)
            .filter_map(|index| self.labels.get(index * total / count.max(1) % total))
            .copied()
            .collect()
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

fn read_cache(path: &Path) -> Option<(Array2<f32>, Vec<i64>)> {
    let tensors = path.is_file().then(|| read_tensors(path))?.ok()?;
    let find = |wanted: &str| {
        tensors
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, t)| t)
    };
    let features = tensors::array2(find("features")?).ok()?;
    let labels = Vec::<i64>::try_from(find("labels")?).ok()?;
    (features.nrows() == labels.len() && !labels.is_empty()).then_some((features, labels))
}

/// A cache that cannot be written costs time, not the result.
fn write_cache(path: &Path, features: &Array2<f32>, labels: &[i64]) {
    let written = (|| {
        let (rows, columns) = features.dim();
        let flat: Vec<f32> = features.iter().copied().collect();
        let tensors = [
            (
                "features".to_owned(),
                Tensor::f_from_slice(&flat)?.f_view([rows as i64, columns as i64])?,
            ),
            ("labels".to_owned(), Tensor::f_from_slice(labels)?),
        ];
        training::write_tensors(path, &tensors)
    })();
    if let Err(error) = written {
        tracing::warn!("reference features are not kept: {error}");
    }
}

/// LDS, CDS, SRSS and RMSC of an encoder over `count` images of a data set. Alpha
/// channels are the foreground masks of SRSS.
///
/// # Errors
/// An image cannot be read, the encoder failed, or a token is not finite.
pub fn spatial_metrics(
    encoder: &dyn Encoder,
    dataset: &Arc<dyn Dataset>,
    config: &Config,
    count: usize,
    device: Device,
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
        let tokens = encoder.encode(&images_to_device(&batch, device)?)?.patch;
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

/// Where the features of real images are kept in a run folder.
pub(crate) fn reference_cache(run_folder: &Path, key: &str) -> PathBuf {
    run_folder
        .join("reference")
        .join(format!("{key}.safetensors"))
}
