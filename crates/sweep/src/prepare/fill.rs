//! Filling one cache, whatever it holds.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use data::{Batch, DataError, Dataset};
use encoders::feature_cache::{CacheError, CacheKey, CacheLayout, CacheWriter, Contents, Rows};
use indicatif::HumanBytes;
use tch::{Device, Tensor};
use training::{Config, TrainError, images_to_device};

use super::PrepareError;
use console::errln;
use console::image_progress::ImageProgress;

/// Images that are read, and seen by an encoder, at once.
const BATCH: usize = 32;
/// Batches that are decoded ahead.
const AHEAD: usize = 4;

/// A cache that is to be made or finished.
pub(super) struct Job {
    pub(super) name: String,
    pub(super) folder: PathBuf,
    contents: Contents,
    /// Samples that nothing is stored of yet.
    samples: u64,
}

impl Job {
    /// Looks at what `folder` holds of this already, and says what will be written.
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
        let samples = contents
            .missing(&folder)?
            .iter()
            .map(|s| s.end - s.start)
            .sum();
        let (key, layout) = (&contents.key, &contents.layout);
        let there = key.samples - samples;
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
            match there {
                0 => String::new(),
                _ if samples == 0 => "; complete".to_owned(),
                _ => format!("; {there} images are there, {samples} to do"),
            }
        );
        Ok(Self {
            name: name.to_owned(),
            folder,
            contents,
            samples,
        })
    }

    /// Fills the cache; `false` if it was interrupted. What `load` gives puts the features of some
    /// images, given as u8 `[B, 3, R, R]` on `device` and mirrored already where it says so, into
    /// rows from the sample that is named; it is not called where nothing is missing.
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
        let mut writer = CacheWriter::open(&self.folder, key, layout)?;
        let missing = writer.missing()?;
        if missing.is_empty() {
            return Ok(true);
        }
        let put = load()?;
        let mut progress = ImageProgress::new(&self.name, self.samples);
        let mut skipped = Skipped::new(config, dataset.as_ref());
        let (send, receive) = mpsc::sync_channel(AHEAD);
        thread::scope(|scope| {
            // Gone with this closure, however it ends: the thread would wait for ever otherwise.
            let receive = receive;
            let ahead: Vec<Range<u64>> = missing.iter().flat_map(chunks).collect();
            scope.spawn(move || {
                for samples in ahead {
                    // The other end is gone when something failed or was interrupted.
                    if send.send(read(dataset.as_ref(), config, samples)).is_err() {
                        return;
                    }
                }
            });
            for samples in &missing {
                let mut rows = writer.rows(samples);
                for chunk in chunks(samples) {
                    if interrupted.load(Ordering::Relaxed) {
                        return Ok(false);
                    }
                    // It ends when everything has been read, and not before.
                    let Ok(parts) = receive.recv() else {
                        return Ok(false);
                    };
                    for part in parts {
                        let Some((first, batch)) = skipped.pass(part)? else {
                            continue;
                        };
                        let images = images_to_device(&batch, device)?;
                        put(&mut rows, first, false, &images)?;
                        if config.data.flip {
                            let mirrored = images.f_flip([-1]).map_err(TrainError::from)?;
                            put(&mut rows, first, true, &mirrored)?;
                        }
                    }
                    progress.add(chunk.end - chunk.start);
                }
                writer.write(rows)?;
            }
            progress.finish(&match skipped.count {
                0 => String::new(),
                count => format!(", {count} of them could not be read and have no {noun}"),
            });
            Ok(true)
        })
    }
}

/// Compares what is to be written with what is free.
pub(super) fn check_space(out: &Path, jobs: &[Job]) -> Result<(), PrepareError> {
    let needed = jobs.iter().map(|job| job.contents.bytes(job.samples)).sum();
    // The folder is not there yet; its disk is that of the nearest one that is.
    let absolute = std::path::absolute(out).map_err(|source| CacheError::Io {
        action: "find",
        path: out.to_owned(),
        source,
    })?;
    let Some(there) = absolute.ancestors().find(|path| path.exists()) else {
        return Ok(());
    };
    match fs4::available_space(there) {
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
                "the free space of {} is not known: {error}",
                there.display()
            );
            Ok(())
        }
    }
}

/// Parts of a shard that are read at once.
fn chunks(samples: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = samples.end;
    (samples.start..end)
        .step_by(BATCH)
        .map(move |start| start..(start + BATCH as u64).min(end))
}

/// Images from the sample that is named with them.
type Part = Result<(u64, Batch), DataError>;

/// The images of some samples: together, or one by one if not all can be read.
fn read(dataset: &dyn Dataset, config: &Config, samples: Range<u64>) -> Vec<Part> {
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
        together => vec![together],
    }
}

/// Samples that cannot be read: passed over, up to a share.
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

    fn pass(&mut self, part: Part) -> Result<Option<(u64, Batch)>, DataError> {
        match part {
            Ok(images) => Ok(Some(images)),
            Err(error) if error.is_corrupt_sample() => {
                tracing::warn!(%error, "passing over a corrupt sample");
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
