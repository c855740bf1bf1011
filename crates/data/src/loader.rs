//! The endless stream of shuffled batches for training.

mod config;
mod order;
mod plan;
mod pool;
mod reader;
mod samples;
mod share;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

pub use self::config::LoaderConfig;
use self::order::EpochOrders;
use self::plan::{BatchPlan, Corrupt, EmptyEpoch, StreamState, TooManyCorrupt, plan};
use self::reader::SampleReader;
use self::samples::Samples;
pub use self::share::Peers;
use self::share::Share;
use crate::batch::Batch;
use crate::cursor::Cursor;
use crate::dataset::Dataset;
use crate::error::DataError;

/// An endless iterator of batches, epoch after epoch.
///
/// The order of each epoch is the [`permutation`](crate::seed::permutation) with the seed
/// `derive(seed, "epoch", [epoch])`. An image is mirrored if `derive(seed, "flip", [epoch, index])` is odd.
/// An incomplete last batch of an epoch is dropped, as in torch's `DataLoader` with `drop_last`.
///
/// A corrupt sample is skipped and replaced by the next one in the order. Its index is logged the first
/// time. If the share of corrupt samples exceeds [`LoaderConfig::max_corrupt_share`], or an epoch yields no
/// batch, the stream returns an error. After an error it ends. A sample that was corrupt once is not read again.
///
/// Several processes can read the same stream, each other rows of its batches: see [`shared`](Self::shared).
///
/// Dropping the loader stops its threads and waits for them.
pub struct Loader {
    dataset: Arc<dyn Dataset>,
    config: LoaderConfig,
    /// After the last batch.
    state: StreamState,
    orders: EpochOrders,
    samples: Samples,
    /// The batches that follow, as far as they are planned.
    planned: VecDeque<BatchPlan>,
    corrupt: Corrupt,
    /// `None` if this loader reads all rows.
    share: Option<Share>,
    failed: bool,
}

impl Loader {
    /// Starts the worker threads. Use `Cursor::default()` to start, or a batch's cursor to resume.
    ///
    /// # Errors
    ///
    /// [`DataError::Config`] if a value is out of range, [`DataError::TooSmall`] if the data set
    /// has fewer samples than a batch, [`DataError::Cursor`] if the cursor is beyond the end of the
    /// data set, [`DataError::Workers`] if a thread cannot be started.
    pub fn new(
        dataset: Arc<dyn Dataset>,
        config: LoaderConfig,
        cursor: Cursor,
    ) -> Result<Self, DataError> {
        config.check()?;
        let len = dataset.len();
        let name = || dataset.name().to_owned();
        if len < config.batch_size as u64 {
            let batch_size = config.batch_size;
            return Err(DataError::TooSmall {
                dataset: name(),
                len,
                batch_size,
            });
        }
        if cursor.position > len {
            let position = cursor.position;
            return Err(DataError::Cursor {
                dataset: name(),
                len,
                position,
            });
        }
        let orders = EpochOrders::new(&config, len as usize);
        let state = StreamState {
            cursor,
            epoch_has_batch: cursor.position > 0,
        };
        Ok(Self {
            samples: Samples::new(
                SampleReader::new(Arc::clone(&dataset), config.clone()),
                config.workers,
            )?,
            dataset,
            config,
            state,
            orders,
            planned: VecDeque::new(),
            corrupt: Corrupt::new(),
            share: None,
            failed: false,
        })
    }

    /// Reads only `rows` of each batch, which the batches then consist of; `peers` read the others. Together the
    /// processes read the batches that one loader would: cursors and numbers of corrupt samples are those of the whole
    /// batches.
    ///
    /// # Errors
    ///
    /// [`DataError::Config`] if a batch has no such row.
    pub fn shared(mut self, rows: Vec<usize>, peers: Box<dyn Peers>) -> Result<Self, DataError> {
        self.share = Some(Share::new(rows, self.config.batch_size, peers)?);
        Ok(self)
    }

    /// The configuration.
    pub fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// The position of the stream after the last batch.
    pub fn cursor(&self) -> Cursor {
        self.state.cursor
    }

    /// Number of corrupt samples since the start of the run, including the part before a resume.
    pub fn skipped(&self) -> u64 {
        self.state.cursor.skipped
    }

    /// Number of batches per epoch if no sample is corrupt.
    pub fn batches_per_epoch(&self) -> u64 {
        self.dataset.len() / self.config.batch_size as u64
    }

    /// Reads no images: those of the batches are empty. For training on caches, which hold all that is computed from images.
    /// The samples of `absent`, which the caches lack, count as corrupt.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn without_images(mut self, absent: HashSet<u64>) -> Result<Self, DataError> {
        let dataset = Arc::clone(&self.dataset);
        let reader = SampleReader::of_labels(dataset, self.config.clone(), absent);
        // Nothing to decode, so no threads.
        self.samples = Samples::new(reader, 0)?;
        Ok(self)
    }

    fn next_batch(&mut self) -> Result<Batch, DataError> {
        loop {
            self.plan_ahead()?;
            let Some(next) = self.planned.pop_front() else {
                continue;
            };
            let found = self.decode(&next)?;
            match next.too_many {
                Some(last) if found.is_empty() => return Err(self.too_many(last)),
                None if found.is_empty() => return self.assemble(next),
                _ => {}
            }
            // The corrupt samples are replaced by the next ones in the order.
            self.planned.clear();
            for index in found {
                self.corrupt.entry(index).or_insert(None);
            }
        }
    }

    /// Plans the next batch and those to prefetch, and requests their samples.
    ///
    /// Which sample belongs to a position does not depend on which samples are corrupt; only which of them form a batch
    /// does. The samples of batches that are planned again are therefore not read again.
    fn plan_ahead(&mut self) -> Result<(), DataError> {
        let ahead = match self.config.workers {
            0 => 0,
            _ => self.config.prefetch,
        };
        while self.planned.len() <= ahead {
            let start = self.planned.back().map_or(self.state, |plan| plan.after);
            let plan = match plan(start, &mut self.orders, &self.corrupt, &self.config) {
                Ok(plan) => plan,
                Err(EmptyEpoch { epoch, valid }) if self.planned.is_empty() => {
                    return Err(DataError::EmptyEpoch {
                        dataset: self.dataset.name().to_owned(),
                        epoch,
                        valid,
                        batch_size: self.config.batch_size,
                    });
                }
                // It is returned when the stream gets there, unless more samples are corrupt until then.
                Err(_) => break,
            };
            for (row, position, task) in plan.samples() {
                if self.reads(row) {
                    self.samples.request(position, task)?;
                }
            }
            self.planned.push_back(plan);
        }
        Ok(())
    }

    /// Waits for the samples of a batch. Returns those that are corrupt.
    fn decode(&mut self, plan: &BatchPlan) -> Result<Vec<u64>, DataError> {
        let mut found = Vec::new();
        for (row, position, task) in plan.samples() {
            if !self.reads(row) {
                continue;
            }
            let Err(error) = self.samples.wait(position, task)? else {
                continue;
            };
            if !error.is_corrupt_sample() {
                return Err(error);
            }
            tracing::warn!(index = task.index, %error, "skipping a corrupt sample");
            self.corrupt.insert(task.index, Some(error));
            found.push(task.index);
        }
        match &mut self.share {
            Some(share) => share.union(&found),
            None => Ok(found),
        }
    }

    /// Makes a batch of decoded samples, and moves the stream behind it.
    fn assemble(&mut self, plan: BatchPlan) -> Result<Batch, DataError> {
        let mut batch = Batch::empty(self.config.resolution, plan.rows.len());
        for (row, (position, task)) in plan.rows.into_iter().enumerate() {
            if !self.reads(row) {
                continue;
            }
            let sample = match self.samples.take(position) {
                Some(sample) => sample,
                None => self.samples.read(task)?,
            };
            batch.push(task.index, task.flip, sample);
        }
        if plan.after.cursor.epoch > self.state.cursor.epoch {
            self.orders.forget_before(plan.after.cursor.epoch);
            self.samples.forget_before(plan.after.cursor.epoch);
        }
        self.state = plan.after;
        batch.cursor = self.state.cursor;
        Ok(batch)
    }

    fn reads(&self, row: usize) -> bool {
        self.share.as_ref().is_none_or(|share| share.has(row))
    }

    fn too_many(&mut self, TooManyCorrupt { cursor, index }: TooManyCorrupt) -> DataError {
        let last = self.corrupt.get_mut(&index).and_then(Option::take);
        DataError::TooManyCorrupt {
            dataset: self.dataset.name().to_owned(),
            skipped: cursor.skipped,
            seen: cursor.seen,
            max_share: self.config.max_corrupt_share,
            // Another process may have read it.
            last: Box::new(last.unwrap_or_else(|| self.read_corrupt(index))),
        }
    }

    /// The error of a sample that is known to be corrupt.
    fn read_corrupt(&self, index: u64) -> DataError {
        match self.dataset.read(index) {
            Err(error) => error,
            Ok(_) => DataError::Sample {
                dataset: self.dataset.name().to_owned(),
                index,
                reason: "another process could not read it".to_owned(),
            },
        }
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let batch = self.next_batch();
        self.failed = batch.is_err();
        Some(batch)
    }
}
