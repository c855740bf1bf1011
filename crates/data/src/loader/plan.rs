//! Which samples a batch has.

use std::collections::HashMap;

use super::config::LoaderConfig;
use super::order::{EpochOrders, StreamPosition, Task};
use crate::cursor::Cursor;
use crate::error::DataError;

/// Smallest number of samples that the share of corrupt samples refers to, or one epoch if that is less: one
/// bad image among the first ten does not mean that a tenth of the data is corrupt.
const MIN_SAMPLES_FOR_SHARE: u64 = 1000;

/// The corrupt samples that are known, with the error of each that was read here.
pub(super) type Corrupt = HashMap<u64, Option<DataError>>;

/// The state of the stream between two batches.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamState {
    pub(super) cursor: Cursor,
    /// Whether the current epoch has yielded a batch.
    pub(super) epoch_has_batch: bool,
}

/// The samples of a batch, and the state of the stream after it.
#[derive(Debug)]
pub(super) struct BatchPlan {
    pub(super) rows: Vec<(StreamPosition, Task)>,
    /// The samples of an incomplete batch at the end of the epoch before, which is dropped, with their rows. Only because
    /// they are not corrupt, the batch was found to be incomplete where it was.
    pub(super) dropped: Vec<(usize, StreamPosition, Task)>,
    pub(super) after: StreamState,
    /// The first corrupt sample that is one too many, if any.
    pub(super) too_many: Option<TooManyCorrupt>,
}

impl BatchPlan {
    /// All samples whose content decides whether the plan holds, with their rows.
    pub(super) fn samples(&self) -> impl Iterator<Item = (usize, StreamPosition, Task)> {
        let rows = self.rows.iter().enumerate();
        let rows = rows.map(|(row, &(position, task))| (row, position, task));
        self.dropped.iter().copied().chain(rows)
    }
}

/// More samples are corrupt than the configuration allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct TooManyCorrupt {
    /// Position after the sample.
    pub(super) cursor: Cursor,
    /// Index of the sample.
    pub(super) index: u64,
}

/// A whole epoch does not yield a batch: it has at most `valid` samples that are not corrupt.
#[derive(Debug, Clone, Copy)]
pub(super) struct EmptyEpoch {
    pub(super) epoch: u64,
    pub(super) valid: u64,
}

/// Plans the batch that follows `start`, on the assumption that no samples are corrupt besides `corrupt`.
///
/// An incomplete last batch of an epoch is dropped. If none of the planned samples, dropped ones included, is corrupt, the
/// plan does not depend on which others are known to be.
pub(super) fn plan(
    start: StreamState,
    orders: &mut EpochOrders,
    corrupt: &Corrupt,
    config: &LoaderConfig,
) -> Result<BatchPlan, EmptyEpoch> {
    let (len, batch_size) = (orders.len as u64, config.batch_size);
    let StreamState {
        mut cursor,
        mut epoch_has_batch,
    } = start;
    let mut rows = Vec::with_capacity(batch_size);
    let mut dropped = Vec::new();
    let mut too_many = None;
    while rows.len() < batch_size {
        let valid = rows.len() as u64 + (len - cursor.position);
        if valid < batch_size as u64 {
            if !epoch_has_batch {
                let epoch = cursor.epoch;
                return Err(EmptyEpoch { epoch, valid });
            }
            epoch_has_batch = false;
            cursor.epoch += 1;
            cursor.position = 0;
            let numbered = rows.drain(..).enumerate();
            dropped.extend(numbered.map(|(row, (position, task))| (row, position, task)));
        }
        let position = StreamPosition::of(cursor);
        let task = orders.task(position);
        cursor.position += 1;
        cursor.seen += 1;
        if !corrupt.contains_key(&task.index) {
            rows.push((position, task));
            continue;
        }
        cursor.skipped += 1;
        let samples = MIN_SAMPLES_FOR_SHARE.min(len).max(cursor.seen);
        if cursor.skipped as f64 > config.max_corrupt_share * samples as f64 {
            let index = task.index;
            too_many = too_many.or(Some(TooManyCorrupt { cursor, index }));
        }
    }
    let epoch_has_batch = true;
    Ok(BatchPlan {
        rows,
        dropped,
        after: StreamState {
            cursor,
            epoch_has_batch,
        },
        too_many,
    })
}
