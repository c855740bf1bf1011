//! The endless stream of shuffled batches for training.

mod config;
mod order;
mod pool;
mod prefetch;

use std::collections::HashSet;
use std::sync::Arc;

pub use self::config::LoaderConfig;
use self::order::{EpochOrders, StreamPosition};
use self::pool::Pool;
use self::prefetch::PrefetchWindow;
use crate::batch::Batch;
use crate::cursor::Cursor;
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::render;

/// Smallest number of samples that the share of corrupt samples refers to, or one epoch if that is less: one
/// bad image among the first ten does not mean that a tenth of the data is corrupt.
const MIN_SAMPLES_FOR_SHARE: u64 = 1000;

/// An endless iterator of batches, epoch after epoch.
///
/// The order of each epoch is the [`permutation`](crate::seed::permutation) with the seed
/// `derive(seed, "epoch", [epoch])`. An image is mirrored if `derive(seed, "flip", [epoch, index])` is odd.
/// An incomplete last batch of an epoch is dropped, as in torch's `DataLoader` with `drop_last`.
///
/// A corrupt sample is skipped and replaced by the next one in the order. Its index is logged the first
/// time. If the share of corrupt samples exceeds [`LoaderConfig::max_corrupt_share`], or an epoch yields no
/// batch, the stream returns an error. After an error it ends.
///
/// Dropping the loader stops its threads and waits for them.
pub struct Loader {
    dataset: Arc<dyn Dataset>,
    config: LoaderConfig,
    cursor: Cursor,
    /// Whether the current epoch has yielded a batch.
    epoch_has_batch: bool,
    orders: EpochOrders,
    /// Samples being prefetched; `None` without workers.
    window: Option<PrefetchWindow>,
    /// Indices of the corrupt samples that were logged.
    logged: HashSet<u64>,
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
        let window = match config.workers {
            0 => None,
            workers => {
                let dataset = Arc::clone(&dataset);
                let pool = Pool::start(workers, dataset, config.resolution, config.background)?;
                Some(PrefetchWindow::new(pool, &config, cursor))
            }
        };
        let epoch_has_batch = cursor.position > 0;
        let logged = HashSet::new();
        let failed = false;
        Ok(Self {
            dataset,
            config,
            cursor,
            epoch_has_batch,
            orders,
            window,
            logged,
            failed,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// The position of the stream after the last batch.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Number of corrupt samples since the start of the run, including the part before a resume.
    pub fn skipped(&self) -> u64 {
        self.cursor.skipped
    }

    /// Number of batches per epoch if no sample is corrupt.
    pub fn batches_per_epoch(&self) -> u64 {
        self.dataset.len() / self.config.batch_size as u64
    }

    fn next_batch(&mut self) -> Result<Batch, DataError> {
        let len = self.dataset.len();
        let batch_size = self.config.batch_size;
        let mut batch = Batch::empty(self.config.resolution, batch_size);
        while batch.len() < batch_size {
            let attainable = batch.len() as u64 + (len - self.cursor.position);
            if attainable < batch_size as u64 {
                self.next_epoch(attainable)?;
                batch.clear();
            }
            let position = StreamPosition::of(self.cursor);
            let task = self.orders.task(position);
            let (resolution, background) = (self.config.resolution, self.config.background);
            let rendered = match &mut self.window {
                Some(window) => window.take(&mut self.orders, position, batch.len())?,
                None => render::read(
                    &*self.dataset,
                    task.index,
                    resolution,
                    background,
                    task.flip,
                ),
            };
            self.cursor.position += 1;
            self.cursor.seen += 1;
            match rendered {
                Ok(sample) => batch.push(task.index, task.flip, sample),
                Err(error) => self.skip(task.index, error)?,
            }
        }
        self.epoch_has_batch = true;
        batch.cursor = self.cursor;
        Ok(batch)
    }

    /// Drops the rest of the epoch, which has at most `valid` usable samples for one batch.
    fn next_epoch(&mut self, valid: u64) -> Result<(), DataError> {
        if !self.epoch_has_batch {
            return Err(DataError::EmptyEpoch {
                dataset: self.dataset.name().to_owned(),
                epoch: self.cursor.epoch,
                valid,
                batch_size: self.config.batch_size,
            });
        }
        self.epoch_has_batch = false;
        self.cursor.epoch += 1;
        self.cursor.position = 0;
        self.orders.forget_before(self.cursor.epoch);
        if let Some(window) = &mut self.window {
            window.forget_before(self.cursor.epoch);
        }
        Ok(())
    }

    /// Counts a corrupt sample. Returns an error for other failures, and if too many samples are corrupt.
    fn skip(&mut self, index: u64, error: DataError) -> Result<(), DataError> {
        if !error.is_corrupt_sample() {
            return Err(error);
        }
        if self.logged.insert(index) {
            tracing::warn!(index, %error, "skipping a corrupt sample");
        }
        self.cursor.skipped += 1;
        let samples = MIN_SAMPLES_FOR_SHARE
            .min(self.dataset.len())
            .max(self.cursor.seen);
        let allowed = self.config.max_corrupt_share * samples as f64;
        if self.cursor.skipped as f64 <= allowed {
            return Ok(());
        }
        Err(DataError::TooManyCorrupt {
            dataset: self.dataset.name().to_owned(),
            skipped: self.cursor.skipped,
            seen: self.cursor.seen,
            max_share: self.config.max_corrupt_share,
            last: Box::new(error),
        })
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
