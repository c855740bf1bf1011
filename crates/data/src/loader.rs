//! The endless stream of shuffled batches that training reads.

mod pool;
mod stream;

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::pool::Pool;
use self::stream::{Orders, Place, Window};
use crate::batch::{Batch, check_resolution};
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::render::{self, Background};

/// The share of corrupt samples is judged against this many samples, or one epoch if that is less,
/// until as many have been seen: one bad image among the first ten is not a tenth of the data.
const JUDGED_AGAINST: u64 = 1000;

/// How a [`Loader`] makes batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderConfig {
    /// Images a batch, at least 1.
    pub batch_size: usize,
    /// Side of the centre crop in pixels, 1 to 8192.
    pub resolution: u32,
    /// Seed of the order and the flips.
    pub seed: u64,
    /// Threads that decode ahead, at most 1024; 0 decodes in the calling thread. The batches are
    /// the same for any number.
    pub workers: usize,
    /// Batches to decode ahead, at most 1024, besides the one being put together.
    pub prefetch: usize,
    /// Mirror each image with probability 1/2, drawn anew each epoch.
    pub flip: bool,
    /// What becomes of the colours under a transparent background.
    pub background: Background,
    /// Share of corrupt samples, 0 to 1, above which the stream ends with an error. It is judged
    /// against 1000 samples (or one epoch) at first.
    pub max_corrupt_share: f64,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            batch_size: 256,
            resolution: 256,
            seed: 0,
            workers: 4,
            prefetch: 2,
            flip: false,
            background: Background::default(),
            max_corrupt_share: 0.01,
        }
    }
}

impl LoaderConfig {
    fn check(&self) -> Result<(), DataError> {
        let wrong = |key, found: String, allowed| {
            Err(DataError::Config {
                key,
                found,
                allowed,
            })
        };
        check_resolution(self.resolution)?;
        if self.batch_size == 0 {
            return wrong("batch_size", self.batch_size.to_string(), "1 or more");
        }
        if self.workers > 1024 {
            return wrong("workers", self.workers.to_string(), "0 to 1024");
        }
        if self.prefetch > 1024 {
            return wrong("prefetch", self.prefetch.to_string(), "0 to 1024");
        }
        if !(0.0..=1.0).contains(&self.max_corrupt_share) {
            return wrong(
                "max_corrupt_share",
                self.max_corrupt_share.to_string(),
                "0 to 1",
            );
        }
        Ok(())
    }
}

/// A place in the stream, which a checkpoint keeps. The default is the start.
///
/// With the same data set and [`LoaderConfig`] (`workers` and `prefetch` apart), a loader that
/// starts from a batch's cursor gives exactly the batches that would have followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Samples of the epoch's order that are behind, corrupt ones among them.
    pub position: u64,
    /// Samples seen since the start, corrupt ones among them.
    pub seen: u64,
    /// Corrupt samples met since the start; one that is met in each epoch counts each time.
    pub skipped: u64,
}

/// An endless iterator of batches, epoch after epoch.
///
/// Each epoch has its own order, [`permutation`](crate::seed::permutation) of `derive(seed, "epoch", [epoch])`; an image
/// is mirrored if `derive(seed, "flip", [epoch, index])` is odd. What is left at the end of an epoch
/// and does not fill a batch is dropped, as by torch's `DataLoader` with `drop_last`.
///
/// A corrupt sample is passed over, and the next of the order takes its place. The first time, its
/// index is logged. Above [`LoaderConfig::max_corrupt_share`], or if an epoch gives no batch, the
/// stream gives an error; after an error it ends.
///
/// Dropping the loader stops its threads and waits for them.
pub struct Loader {
    dataset: Arc<dyn Dataset>,
    config: LoaderConfig,
    cursor: Cursor,
    /// Whether the current epoch has given a batch.
    epoch_has_batch: bool,
    orders: Orders,
    /// Decodes ahead, if there are workers.
    window: Option<Window>,
    logged: HashSet<u64>,
    failed: bool,
}

impl Loader {
    /// Starts the threads. Begin with `Cursor::default()`, or go on from a batch's cursor.
    ///
    /// # Errors
    ///
    /// [`DataError::Config`] if a value is out of range, [`DataError::TooSmall`] if the data set
    /// has fewer samples than a batch, [`DataError::Cursor`] if the cursor lies outside of the data
    /// set, [`DataError::Workers`] if a thread cannot be started.
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
        let orders = Orders::new(&config, len as usize);
        let window = match config.workers {
            0 => None,
            workers => {
                let dataset = Arc::clone(&dataset);
                let pool = Pool::start(workers, dataset, config.resolution, config.background)?;
                Some(Window::new(pool, &config, cursor))
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

    /// State of the stream after the last batch.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Corrupt samples met since the start of the run, before a resume too.
    pub fn skipped(&self) -> u64 {
        self.cursor.skipped
    }

    /// Batches of an epoch in which no sample is corrupt.
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
            let place = Place::of(self.cursor);
            let task = self.orders.task(place);
            let (resolution, background) = (self.config.resolution, self.config.background);
            let rendered = match &mut self.window {
                Some(window) => window.take(&mut self.orders, place, batch.len())?,
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

    /// Leaves what remains of an epoch, of which `valid` samples at most could be used.
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

    /// Counts a corrupt sample; other errors, and too many corrupt samples, go to the caller.
    fn skip(&mut self, index: u64, error: DataError) -> Result<(), DataError> {
        if !error.is_corrupt_sample() {
            return Err(error);
        }
        if self.logged.insert(index) {
            tracing::warn!(index, %error, "passing over a corrupt sample");
        }
        self.cursor.skipped += 1;
        let judged_against = JUDGED_AGAINST.min(self.dataset.len()).max(self.cursor.seen);
        let allowed = self.config.max_corrupt_share * judged_against as f64;
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
