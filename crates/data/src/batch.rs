//! Batches of images, and reading a batch of chosen samples for evaluation.

use rayon::prelude::*;

use crate::cursor::Cursor;
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::render::{self, Background, Rendered};

/// Largest side of the images of a batch, so that a typo does not exhaust memory.
pub(crate) const MAX_RESOLUTION: u32 = 8192;

/// `B` images of `R` x `R` pixels with their labels, in the order of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Colours 0..255, `[B, 3, R, R]`, row-major; empty if the loader reads no images.
    pub images: Vec<u8>,
    /// Opacity after the same crop and flip, 0 (background) to 255 (foreground), `[B, R, R]`.
    /// `None` if no image of the batch has an alpha channel. If only some have one, the masks of the
    /// others are 255 everywhere.
    pub masks: Option<Vec<u8>>,
    /// Class indices, `[B]`.
    pub labels: Vec<i64>,
    /// Indices of the samples in the data set, `[B]`.
    pub ids: Vec<u64>,
    /// Whether each image is mirrored left to right, `[B]`.
    pub flipped: Vec<bool>,
    /// The side `R` in pixels.
    pub resolution: u32,
    /// Position of the stream after this batch, for a checkpoint. A batch of [`read_batch`] is not part
    /// of a stream; its cursor is the default, the start of a stream.
    pub cursor: Cursor,
}

impl Batch {
    /// Number of images, `B`.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub(crate) fn empty(resolution: u32, batch_size: usize) -> Self {
        Self {
            images: Vec::with_capacity(batch_size * 3 * resolution as usize * resolution as usize),
            masks: None,
            labels: Vec::with_capacity(batch_size),
            ids: Vec::with_capacity(batch_size),
            flipped: Vec::with_capacity(batch_size),
            resolution,
            cursor: Cursor::default(),
        }
    }

    pub(crate) fn push(&mut self, id: u64, flipped: bool, sample: Rendered) {
        let plane = self.resolution as usize * self.resolution as usize;
        match (&mut self.masks, sample.mask) {
            (Some(masks), Some(mask)) => masks.extend(mask),
            (Some(masks), None) => masks.resize(masks.len() + plane, 255),
            (masks @ None, Some(mask)) => {
                let mut opaque = vec![255; self.ids.len() * plane];
                opaque.extend(mask);
                *masks = Some(opaque);
            }
            (None, None) => {}
        }
        self.images.extend(sample.pixels);
        self.labels.push(sample.label);
        self.ids.push(id);
        self.flipped.push(flipped);
    }
}

/// Reads the samples at `indices`, in that order, neither shuffled nor flipped.
///
/// This serves fixed evaluation sets: reference features, spatial metrics, visualisation. Images are
/// decoded in parallel by rayon.
///
/// # Errors
///
/// The error of the first sample of `indices` that cannot be read: an evaluation set must not
/// shrink silently. [`DataError::Config`] if `resolution` is out of range.
pub fn read_batch(
    dataset: &dyn Dataset,
    indices: &[u64],
    resolution: u32,
    background: Background,
) -> Result<Batch, DataError> {
    check_resolution(resolution)?;
    let samples: Vec<_> = indices
        .par_iter()
        .map(|&index| render::read(dataset, index, resolution, background, false))
        .collect();
    let mut batch = Batch::empty(resolution, indices.len());
    for (&index, sample) in indices.iter().zip(samples) {
        batch.push(index, false, sample?);
    }
    Ok(batch)
}

pub(crate) fn check_resolution(resolution: u32) -> Result<(), DataError> {
    if (1..=MAX_RESOLUTION).contains(&resolution) {
        return Ok(());
    }
    Err(DataError::Config {
        key: "resolution",
        found: resolution.to_string(),
        allowed: "1 to 8192 pixels",
    })
}
