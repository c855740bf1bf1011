//! Samples that are decoded ahead of the reader.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::order::{StreamPosition, Task};
use super::pool::Pool;
use super::reader::SampleReader;
use crate::error::DataError;
use crate::render::Rendered;

/// The samples that were requested and not yet taken. With a pool of threads they are decoded when they are requested,
/// without one when they are taken.
pub(super) struct Samples {
    reader: Arc<SampleReader>,
    pool: Option<Pool>,
    pending: HashSet<StreamPosition>,
    ready: HashMap<StreamPosition, Result<Rendered, DataError>>,
}

impl Samples {
    /// Starts a pool of `workers` threads.
    pub(super) fn new(reader: SampleReader, workers: usize) -> Result<Self, DataError> {
        let reader = Arc::new(reader);
        let pool = match workers {
            0 => None,
            workers => Some(Pool::start(workers, Arc::clone(&reader))?),
        };
        Ok(Self {
            reader,
            pool,
            pending: HashSet::new(),
            ready: HashMap::new(),
        })
    }

    /// Starts to decode a sample, unless it was requested before.
    pub(super) fn request(
        &mut self,
        position: StreamPosition,
        task: Task,
    ) -> Result<(), DataError> {
        if let Some(pool) = &self.pool
            && !self.ready.contains_key(&position)
            && self.pending.insert(position)
        {
            pool.submit(position, task)?;
        }
        Ok(())
    }

    /// Waits for a sample and keeps it for [`take`](Self::take). The outer error is a failure of the pool, the inner one
    /// a failure to read the sample, which is not kept.
    pub(super) fn wait(
        &mut self,
        position: StreamPosition,
        task: Task,
    ) -> Result<Result<(), DataError>, DataError> {
        let rendered = match self.ready.remove(&position) {
            Some(rendered) => rendered,
            None => {
                self.request(position, task)?;
                self.receive(position, task)?
            }
        };
        Ok(rendered.map(|rendered| drop(self.ready.insert(position, Ok(rendered)))))
    }

    fn receive(
        &mut self,
        position: StreamPosition,
        task: Task,
    ) -> Result<Result<Rendered, DataError>, DataError> {
        let Some(pool) = &self.pool else {
            return Ok(self.read(task));
        };
        loop {
            let (done, rendered) = pool.receive()?;
            // A position that was discarded in the meantime is not pending.
            if !self.pending.remove(&done) {
                continue;
            }
            if done == position {
                return Ok(rendered);
            }
            self.ready.insert(done, rendered);
        }
    }

    /// Reads a sample in this thread.
    pub(super) fn read(&self, task: Task) -> Result<Rendered, DataError> {
        self.reader.read(task)
    }

    /// Takes a sample that [`wait`](Self::wait) kept.
    pub(super) fn take(&mut self, position: StreamPosition) -> Option<Rendered> {
        self.ready.remove(&position)?.ok()
    }

    /// Discards the samples of earlier epochs.
    pub(super) fn forget_before(&mut self, epoch: u64) {
        self.pending.retain(|position| position.epoch >= epoch);
        self.ready.retain(|position, _| position.epoch >= epoch);
    }
}
