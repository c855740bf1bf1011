//! The window of samples that is prefetched.

use std::collections::{HashMap, HashSet};

use super::config::LoaderConfig;
use super::order::{EpochOrders, StreamPosition};
use super::pool::Pool;
use crate::cursor::Cursor;
use crate::error::DataError;
use crate::render::Rendered;

/// The samples that are decoded ahead of the reader.
///
/// Which sample belongs to a position does not depend on which samples are corrupt; only the end of an
/// epoch does. The window is therefore filled on the assumption that no further sample is corrupt. A
/// position that this assumption omitted is submitted when it is requested.
pub(super) struct PrefetchWindow {
    pool: Pool,
    batch_size: u64,
    /// Largest number of positions that are submitted but not yet taken.
    capacity: usize,
    /// The next position to submit.
    next: StreamPosition,
    pending: HashSet<StreamPosition>,
    ready: HashMap<StreamPosition, Result<Rendered, DataError>>,
}

impl PrefetchWindow {
    pub(super) fn new(pool: Pool, config: &LoaderConfig, start: Cursor) -> Self {
        Self {
            pool,
            batch_size: config.batch_size as u64,
            capacity: config.batch_size.saturating_mul(config.prefetch + 1),
            next: StreamPosition::of(start),
            pending: HashSet::new(),
            ready: HashMap::new(),
        }
    }

    /// Waits for the sample at a position. Positions must be requested in order; `collected` is the
    /// number of samples that the current batch already has. The outer error is a failure of the pool,
    /// the inner one a failure to read the sample.
    pub(super) fn take(
        &mut self,
        orders: &mut EpochOrders,
        position: StreamPosition,
        collected: usize,
    ) -> Result<Result<Rendered, DataError>, DataError> {
        if !self.pending.contains(&position) && !self.ready.contains_key(&position) {
            self.submit(orders, position)?;
            self.next = self.next.max(position.next_in_epoch());
        }
        self.fill(orders, position, collected as u64)?;
        loop {
            if let Some(rendered) = self.ready.remove(&position) {
                return Ok(rendered);
            }
            let (done, rendered) = self.pool.receive()?;
            // A position that was discarded in the meantime is not pending.
            if self.pending.remove(&done) {
                self.ready.insert(done, rendered);
            }
        }
    }

    /// Discards positions of epochs that ended sooner than assumed.
    pub(super) fn forget_before(&mut self, epoch: u64) {
        self.pending.retain(|position| position.epoch >= epoch);
        self.ready.retain(|position, _| position.epoch >= epoch);
    }

    fn fill(
        &mut self,
        orders: &mut EpochOrders,
        current: StreamPosition,
        collected: u64,
    ) -> Result<(), DataError> {
        let len = orders.len as u64;
        while self.pending.len() + self.ready.len() < self.capacity {
            // Prefetch complete batches only, because the rest of an epoch is dropped.
            let end = if self.next.epoch == current.epoch {
                let usable = len - current.offset + collected;
                current.offset + (usable - usable % self.batch_size).saturating_sub(collected)
            } else {
                len - len % self.batch_size
            };
            if self.next.offset >= end {
                self.next = StreamPosition {
                    epoch: self.next.epoch + 1,
                    offset: 0,
                };
            } else {
                self.submit(orders, self.next)?;
                self.next = self.next.next_in_epoch();
            }
        }
        Ok(())
    }

    fn submit(
        &mut self,
        orders: &mut EpochOrders,
        position: StreamPosition,
    ) -> Result<(), DataError> {
        self.pool.submit(position, orders.task(position))?;
        self.pending.insert(position);
        Ok(())
    }
}
