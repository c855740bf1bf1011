//! Which sample stands at which place of the stream, and the window that is decoded ahead.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Cursor, LoaderConfig, Pool};
use crate::error::DataError;
use crate::render::Rendered;
use crate::seed;

/// A place in the stream: a position in the order of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub epoch: u64,
    pub position: u64,
}

impl Place {
    pub(super) fn of(cursor: Cursor) -> Self {
        Place {
            epoch: cursor.epoch,
            position: cursor.position,
        }
    }

    fn following(self) -> Self {
        Place {
            position: self.position + 1,
            ..self
        }
    }
}

/// What to read for a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Task {
    /// Index of the sample.
    pub index: u64,
    /// Mirror it.
    pub flip: bool,
}

/// The orders of the epochs in use.
pub(super) struct Orders {
    seed: u64,
    flips: bool,
    /// Samples in the data set.
    len: usize,
    epochs: BTreeMap<u64, Vec<u64>>,
}

impl Orders {
    pub(super) fn new(config: &LoaderConfig, len: usize) -> Self {
        Self {
            seed: config.seed,
            flips: config.flip,
            len,
            epochs: BTreeMap::new(),
        }
    }

    /// What stands at a place, whose position must be below the number of samples.
    pub(super) fn task(&mut self, place: Place) -> Task {
        let (seed, epoch, len) = (self.seed, place.epoch, self.len);
        let order = self
            .epochs
            .entry(epoch)
            .or_insert_with(|| seed::permutation(seed::derive(seed, "epoch", &[epoch]), len));
        let index = order[place.position as usize];
        let flip = self.flips && seed::derive(seed, "flip", &[epoch, index]) % 2 == 1;
        Task { index, flip }
    }

    pub(super) fn forget_before(&mut self, epoch: u64) {
        self.epochs.retain(|&known, _| known >= epoch);
    }
}

/// The places that are being decoded ahead of the reader.
///
/// What stands at a place does not depend on which samples are corrupt; only where an epoch ends
/// does. So the window is filled on the guess that no further sample is corrupt, and a place that
/// the guess left out is submitted when it is asked for.
pub(super) struct Window {
    pool: Pool,
    batch_size: u64,
    /// Places that may be submitted and not taken.
    room: usize,
    /// The next place to submit.
    next: Place,
    pending: HashSet<Place>,
    ready: HashMap<Place, Result<Rendered, DataError>>,
}

impl Window {
    pub(super) fn new(pool: Pool, config: &LoaderConfig, start: Cursor) -> Self {
        Self {
            pool,
            batch_size: config.batch_size as u64,
            room: config.batch_size.saturating_mul(config.prefetch + 1),
            next: Place::of(start),
            pending: HashSet::new(),
            ready: HashMap::new(),
        }
    }

    /// Waits for the sample at a place. Places must be asked for in order; `collected` is the number
    /// of samples that the batch has already. The inner result is the sample's own.
    pub(super) fn take(
        &mut self,
        orders: &mut Orders,
        place: Place,
        collected: usize,
    ) -> Result<Result<Rendered, DataError>, DataError> {
        if !self.pending.contains(&place) && !self.ready.contains_key(&place) {
            self.submit(orders, place)?;
            self.next = self.next.max(place.following());
        }
        self.fill(orders, place, collected as u64)?;
        loop {
            if let Some(rendered) = self.ready.remove(&place) {
                return Ok(rendered);
            }
            let (done, rendered) = self.pool.receive()?;
            // A place that was forgotten in the meantime is not pending.
            if self.pending.remove(&done) {
                self.ready.insert(done, rendered);
            }
        }
    }

    /// Forgets places of epochs that ended sooner than guessed.
    pub(super) fn forget_before(&mut self, epoch: u64) {
        self.pending.retain(|place| place.epoch >= epoch);
        self.ready.retain(|place, _| place.epoch >= epoch);
    }

    fn fill(&mut self, orders: &mut Orders, now: Place, collected: u64) -> Result<(), DataError> {
        let len = orders.len as u64;
        while self.pending.len() + self.ready.len() < self.room {
            // Whole batches only: the end of the epoch would be decoded in vain.
            let end = if self.next.epoch == now.epoch {
                let usable = len - now.position + collected;
                now.position + (usable - usable % self.batch_size).saturating_sub(collected)
            } else {
                len - len % self.batch_size
            };
            if self.next.position >= end {
                self.next = Place {
                    epoch: self.next.epoch + 1,
                    position: 0,
                };
            } else {
                self.submit(orders, self.next)?;
                self.next = self.next.following();
            }
        }
        Ok(())
    }

    fn submit(&mut self, orders: &mut Orders, place: Place) -> Result<(), DataError> {
        self.pool.submit(place, orders.task(place))?;
        self.pending.insert(place);
        Ok(())
    }
}
