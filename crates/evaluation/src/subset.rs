//! Selects images of a data set and reads them in batches.

use std::sync::Arc;

use data::{Batch, DataError, Dataset};
use training::Config;

/// Images that an encoder processes at once.
pub(crate) const BATCH: usize = 32;

/// Reads the images at `indices` in batches of at most [`BATCH`].
pub(crate) fn batches<'a>(
    dataset: &'a Arc<dyn Dataset>,
    indices: &'a [u64],
    config: &'a Config,
) -> impl Iterator<Item = Result<Batch, DataError>> + 'a {
    let data = &config.data;
    indices
        .chunks(BATCH)
        .map(|chunk| data::read_batch(dataset.as_ref(), chunk, data.resolution, data.background))
}

/// Returns `count` evenly spaced indices below `total`. Data sets are often sorted by class, so the first indices would
/// not be representative.
pub fn evenly_spaced(count: u64, total: u64) -> Vec<u64> {
    (0..count).map(|index| index * total / count).collect()
}

/// The number of images to read: at most `wanted`, or all if `wanted` is 0.
pub(crate) fn limit(dataset: &Arc<dyn Dataset>, wanted: usize) -> u64 {
    match wanted as u64 {
        0 => dataset.len(),
        wanted => wanted.min(dataset.len()),
    }
}
