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

/// The number of images to read: at most `wanted`, or all if `wanted` is 0.
pub(crate) fn limit(dataset: &Arc<dyn Dataset>, wanted: usize) -> u64 {
    match wanted as u64 {
        0 => dataset.len(),
        wanted => wanted.min(dataset.len()),
    }
}
