//! Fills one cache, with tokens or moments.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SendError, SyncSender};
use std::thread;
use std::time::Duration;

use data::{Batch, DataError, Dataset};
use encoders::feature_cache::{
    CacheError, CacheKey, CacheLayout, CacheWriter, Claim, ClaimedShard, Contents, Rows,
};
use indicatif::HumanBytes;
use tch::{Device, Tensor};
use training::{Config, TrainError, images_to_device};

use super::PrepareError;
use terminal::errln;
use terminal::image_progress::ImageProgress;

/// Number of images that are read and encoded at once.
const BATCH: usize = 32;
/// Number of batches that are decoded ahead.
const AHEAD: usize = 4;

/// A cache that is to be created or completed.
pub(super) struct Job {
    pub(super) name: String,
    pub(super) folder: PathBuf,
    contents: Contents,
    /// Number of samples that are not stored yet.
    missing: u64,
}

impl Job {
    /// Checks which part of the cache `folder` already contains, and prints what will be written.
    pub(super) fn plan(
        name: &str,
        folder: PathBuf,
        key: CacheKey,
        layout: CacheLayout,
    ) -> Result<Self, PrepareError> {
        let mut contents = Contents::new(key, layout);
        let found = Contents::read(&folder)?;
        if let Some(found) = &found {
            contents.layout.shard_samples = found.layout.shard_samples;
        }
        let missing = contents
            .missing(&folder)?
            .iter()
            .map(|samples| samples.end - samples.start)
            .sum();
        let (key, layout) = (&contents.key, &contents.layout);
        let stored = key.samples - missing;
        let [height, width] = layout.grid.into();
        errln!(
            "{name}: {} images{} x {height} x {width} {} x {}, {}: {} in {}{}",
            key.samples,
            if layout.mirrored {
                ", each also mirrored,"
            } else {
                ""
            },
            key.features.noun(),
            layout.width,
            layout.stored.name(),
            HumanBytes(contents.bytes(key.samples)),
            folder.display(),
            match stored {
                0 => String::new(),
                _ if missing == 0 => "; complete".to_owned(),
                _ => format!("; {stored} images are already stored, {missing} are missing"),
            }
        );
        Ok(Self {
            name: name.to_owned(),
            folder,
            contents,
            missing,
        })
    }

    /// Fills the cache, together with other processes that do the same. Returns false if it was interrupted.
    ///
    /// `load` loads the network and returns a function that encodes images; it is not called if the cache is complete.
    /// That function is called with the rows to write to, the id of the first sample, whether the images are mirrored,
    /// and the images, u8 `[B, 3, R, R]` on `device`.
    pub(super) fn fill<P>(
        &self,
        config: &Config,
        dataset: &Arc<dyn Dataset>,
        device: Device,
        interrupted: &AtomicBool,
        load: impl FnOnce() -> Result<P, PrepareError>,
    ) -> Result<bool, PrepareError>
    where
        P: Fn(&mut Rows, u64, bool, &Tensor) -> Result<(), PrepareError>,
    {
        let Contents { key, layout, .. } = self.contents.clone();
        let noun = key.features.noun();
        let writer = CacheWriter::open(&self.folder, key, layout)?;
        let missing = writer.missing()?;
        if missing.is_empty() {
            return Ok(true);
        }
        let encode = load()?;
        let mut progress = ImageProgress::new(&self.name, self.missing);
        let mut skipped = Skipped::new(config, dataset.as_ref());
        let (send, receive) = mpsc::sync_channel(AHEAD);
        thread::scope(|scope| {
            // Moved into this closure, so that it is dropped when the closure ends. Otherwise the thread would block
            // forever.
            let receive = receive;
            let reader = ShardReader {
                writer: &writer,
                dataset: dataset.as_ref(),
                config,
                interrupted,
            };
            scope.spawn(move || {
                let report = send.clone();
                if let Err(error) = reader.read_all(missing, &send) {
                    let _ended = report.send(Part::Failed(error));
                }
            });
            let mut current: Option<(Rows, ClaimedShard)> = None;
            // Ends when the thread has read all shards.
            for part in receive {
                if interrupted.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                match part {
                    Part::Begin(samples, shard) => current = Some((writer.rows(&samples), shard)),
                    Part::Images(count, reads) => {
                        let Some((rows, _)) = &mut current else {
                            continue;
                        };
                        for read in reads {
                            let Some((first, batch)) = skipped.check(read)? else {
                                continue;
                            };
                            let images = images_to_device(&batch, device)?;
                            encode(rows, first, false, &images)?;
                            if config.data.flip {
                                let mirrored = images.f_flip([-1]).map_err(TrainError::from)?;
                                encode(rows, first, true, &mirrored)?;
                            }
                        }
                        progress.add(count);
                    }
                    Part::End => {
                        if let Some((rows, shard)) = current.take() {
                            writer.write(rows, shard)?;
                        }
                    }
                    Part::WrittenElsewhere(count) => progress.add(count),
                    Part::Failed(error) => return Err(error.into()),
                }
            }
            if interrupted.load(Ordering::Relaxed) {
                return Ok(false);
            }
            progress.finish(&match skipped.count {
                0 => String::new(),
                count => format!(", {count} of them could not be read and have no {noun}"),
            });
            Ok(true)
        })
    }
}

/// Interval at which shards are looked at that other processes write.
const CHECK_EVERY: Duration = Duration::from_millis(500);

/// What the thread that reads images sends.
enum Part {
    /// A shard of these samples was claimed; its images follow.
    Begin(Range<u64>, ClaimedShard),
    /// The next images of the shard, and how many samples they are.
    Images(u64, Vec<ReadImages>),
    /// The shard is complete.
    End,
    /// Another process has written a shard of so many samples.
    WrittenElsewhere(u64),
    Failed(CacheError),
}

/// Claims shards and reads their images.
struct ShardReader<'a> {
    writer: &'a CacheWriter,
    dataset: &'a dyn Dataset,
    config: &'a Config,
    interrupted: &'a AtomicBool,
}

impl ShardReader<'_> {
    /// Reads the images of `shards` that no other process writes, and waits until the others are written. A shard that
    /// another process gives up is claimed then. Ends early if the receiver has ended.
    fn read_all(
        &self,
        mut shards: Vec<Range<u64>>,
        parts: &SyncSender<Part>,
    ) -> Result<(), CacheError> {
        let mut has_waited = false;
        while !shards.is_empty() && !self.interrupted.load(Ordering::Relaxed) {
            let before = shards.len();
            let mut held = Vec::new();
            for samples in shards {
                let count = samples.end - samples.start;
                let sent = match self.writer.claim(&samples)? {
                    Claim::Own(shard) => self.read_shard(samples, shard, parts),
                    Claim::Written => parts.send(Part::WrittenElsewhere(count)),
                    Claim::Held(error) => {
                        if !has_waited {
                            tracing::info!("a shard that another process writes: {error}");
                        }
                        held.push(samples);
                        Ok(())
                    }
                };
                if sent.is_err() {
                    return Ok(());
                }
            }
            if held.len() == before {
                has_waited = true;
                thread::sleep(CHECK_EVERY);
            }
            shards = held;
        }
        Ok(())
    }

    fn read_shard(
        &self,
        samples: Range<u64>,
        shard: ClaimedShard,
        parts: &SyncSender<Part>,
    ) -> Result<(), SendError<Part>> {
        parts.send(Part::Begin(samples.clone(), shard))?;
        for chunk in chunks(&samples) {
            let count = chunk.end - chunk.start;
            let images = read(self.dataset, self.config, chunk);
            parts.send(Part::Images(count, images))?;
        }
        parts.send(Part::End)
    }
}

/// Compares the bytes to be written with the free space of the disk, and prints both.
///
/// # Errors
/// The disk has not enough free space.
pub(super) fn check_space(out: &Path, jobs: &[Job]) -> Result<(), PrepareError> {
    let needed = jobs.iter().map(|job| job.contents.bytes(job.missing)).sum();
    // The folder may not exist yet; it will be on the disk of its nearest existing ancestor.
    let absolute = std::path::absolute(out).map_err(|source| CacheError::Io {
        action: "find",
        path: out.to_owned(),
        source,
    })?;
    let Some(existing) = absolute.ancestors().find(|path| path.exists()) else {
        return Ok(());
    };
    match fs4::available_space(existing) {
        Ok(free) if needed > free => Err(PrepareError::Cache(CacheError::InsufficientSpace {
            folder: out.to_owned(),
            needed,
            free,
        })),
        Ok(free) => {
            if needed > 0 {
                errln!("{} to write, {} free", HumanBytes(needed), HumanBytes(free));
            }
            Ok(())
        }
        Err(error) => {
            tracing::warn!(
                "the free space of {} is unknown: {error}",
                existing.display()
            );
            Ok(())
        }
    }
}

/// Divides the samples of a shard into ranges that are read at once.
fn chunks(samples: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = samples.end;
    (samples.start..end)
        .step_by(BATCH)
        .map(move |start| start..(start + BATCH as u64).min(end))
}

/// Consecutive images and the id of the first, or the error of reading them.
type ReadImages = Result<(u64, Batch), DataError>;

/// Reads the images of `samples` as one batch, or one by one if some of them are corrupt.
fn read(dataset: &dyn Dataset, config: &Config, samples: Range<u64>) -> Vec<ReadImages> {
    let data = &config.data;
    let images = |samples: Range<u64>| {
        let first = samples.start;
        let indices: Vec<u64> = samples.collect();
        data::read_batch(dataset, &indices, data.resolution, data.background)
            .map(|batch| (first, batch))
    };
    match images(samples.clone()) {
        Err(error) if error.is_corrupt_sample() => {
            samples.map(|sample| images(sample..sample + 1)).collect()
        }
        batch => vec![batch],
    }
}

/// Counts the corrupt samples that are skipped, up to `data.max_corrupt_share`.
struct Skipped {
    dataset: String,
    samples: u64,
    max_share: f64,
    count: u64,
}

impl Skipped {
    fn new(config: &Config, dataset: &dyn Dataset) -> Self {
        Self {
            dataset: dataset.name().to_owned(),
            samples: dataset.len(),
            max_share: config.data.max_corrupt_share,
            count: 0,
        }
    }

    /// Returns images that could be read, and `None` for a corrupt sample that is skipped.
    ///
    /// # Errors
    /// Too many samples are corrupt, or another error of reading.
    fn check(&mut self, read: ReadImages) -> Result<Option<(u64, Batch)>, DataError> {
        match read {
            Ok(images) => Ok(Some(images)),
            Err(error) if error.is_corrupt_sample() => {
                tracing::warn!(%error, "skipping a corrupt sample");
                self.count += 1;
                if self.count as f64 <= self.max_share * self.samples as f64 {
                    return Ok(None);
                }
                Err(DataError::TooManyCorrupt {
                    dataset: self.dataset.clone(),
                    skipped: self.count,
                    seen: self.samples,
                    max_share: self.max_share,
                    last: Box::new(error),
                })
            }
            Err(error) => Err(error),
        }
    }
}
