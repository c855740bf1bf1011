//! Some images of a data set, in batches.

use std::sync::Arc;

use data::{Batch, DataError, Dataset};
use training::Config;

/// Images that an encoder sees at once.
pub(crate) const BATCH: usize = 32;

/// The images at `indices`, a few at a time.
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

/// `count` of `total` indices: data sets are often sorted by class, so the first ones would not do.
pub fn evenly_spaced(count: u64, total: u64) -> Vec<u64> {
    (0..count).map(|index| index * total / count).collect()
}

pub(crate) fn limit(dataset: &Arc<dyn Dataset>, wanted: usize) -> u64 {
    match wanted as u64 {
        0 => dataset.len(),
        wanted => wanted.min(dataset.len()),
    }
}
