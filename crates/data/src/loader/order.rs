//! The order of samples in the stream.

use std::collections::BTreeMap;

use super::config::LoaderConfig;
use crate::cursor::Cursor;
use crate::seed;

/// A position in the stream: an epoch, and an index into its sample order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct StreamPosition {
    pub epoch: u64,
    pub offset: u64,
}

impl StreamPosition {
    pub(super) fn of(cursor: Cursor) -> Self {
        StreamPosition {
            epoch: cursor.epoch,
            offset: cursor.position,
        }
    }
}

/// The sample to read for a position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Task {
    /// Index of the sample.
    pub index: u64,
    /// Mirror the image left to right.
    pub flip: bool,
}

/// The sample orders of the epochs in use.
pub(super) struct EpochOrders {
    seed: u64,
    flips: bool,
    /// Number of samples in the data set.
    pub(super) len: usize,
    epochs: BTreeMap<u64, Vec<u64>>,
}

impl EpochOrders {
    pub(super) fn new(config: &LoaderConfig, len: usize) -> Self {
        Self {
            seed: config.seed,
            flips: config.flip,
            len,
            epochs: BTreeMap::new(),
        }
    }

    /// The task for a position, whose offset must be below the number of samples.
    pub(super) fn task(&mut self, position: StreamPosition) -> Task {
        let (seed, epoch, len) = (self.seed, position.epoch, self.len);
        let order = self
            .epochs
            .entry(epoch)
            .or_insert_with(|| seed::permutation(seed::derive(seed, "epoch", &[epoch]), len));
        let index = order[position.offset as usize];
        let flip = self.flips && seed::derive(seed, "flip", &[epoch, index]) % 2 == 1;
        Task { index, flip }
    }

    pub(super) fn forget_before(&mut self, epoch: u64) {
        self.epochs.retain(|&known, _| known >= epoch);
    }
}
