//! Feature caches: the tokens of a whole data set, by each of some encoders, computed once.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use data::{Batch, DataError, Dataset};
use encoders::feature_cache::{self, CacheError, CacheLayout, CacheWriter, Contents};
use encoders::{Encoder, EncoderError, Precision, Registry, Tokens};
use indicatif::HumanBytes;
use tch::{Device, Tensor};
use thiserror::Error;
use training::{Config, TrainError, images_to_device};

use crate::encoder_bank::{EncoderBank, device_kind};
use crate::image_progress::ImageProgress;

/// Images that an encoder sees at once.
const BATCH: usize = 32;
/// Batches that are decoded ahead of the encoder.
const AHEAD: usize = 4;

/// What to make.
#[derive(Debug, Clone)]
pub struct FeatureOptions {
    /// Whose data set, resolution, background, flips and encoder precision are used: the
    /// configuration that will be trained.
    pub config: Config,
    /// Encoders by name.
    pub encoders: Vec<String>,
    /// Folder of the caches, one a sub-folder.
    pub out: PathBuf,
    /// Dtype of the stored tokens.
    pub stored: Precision,
    /// Bytes of a shard, about.
    pub shard_bytes: u64,
}

/// How it ended.
#[derive(Debug, Default)]
pub struct FeatureOutcome {
    /// Complete caches.
    pub made: Vec<PathBuf>,
    /// Encoders without a cache, with the reason.
    pub failed: Vec<(String, PrepareError)>,
    /// Whether it was interrupted; what is written stays.
    pub interrupted: bool,
}

/// Why tokens could not be computed or stored.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// The data set cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The encoder cannot be loaded, or failed.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// The tokens cannot be stored.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The images could not be moved to the device.
    #[error(transparent)]
    Train(#[from] TrainError),
}

/// A cache that is to be made or finished.
struct Job {
    encoder: String,
    folder: PathBuf,
    contents: Contents,
    /// Samples that have no tokens yet.
    samples: u64,
}

/// Computes the tokens of the training split by each encoder and stores them. Says what it will
/// write before it starts, and does not start if that does not fit the disk. A cache that is
/// complete stays as it is; one that is not is finished.
///
/// # Errors
/// The data set cannot be opened, or the disk is too small. What goes wrong with one encoder is
/// part of the outcome, and the others are still done.
pub fn features(
    options: &FeatureOptions,
    registry: Registry,
    device: Device,
    interrupted: &AtomicBool,
) -> Result<FeatureOutcome, PrepareError> {
    let data = &options.config.data;
    let dataset = data::open(&data.path, &data.training_split())?;
    let bank = EncoderBank::new(registry, device);
    let mut outcome = FeatureOutcome::default();
    let mut jobs = Vec::new();
    for encoder in &options.encoders {
        match plan(options, &bank, encoder, dataset.as_ref()) {
            Ok(job) => jobs.push(job),
            Err(error) => {
                eprintln!("{encoder}: {error}");
                outcome.failed.push((encoder.clone(), error));
            }
        }
    }
    check_space(&options.out, &jobs)?;
    for job in jobs {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        match make(&job, options, &bank, &dataset, interrupted) {
            Ok(true) => outcome.made.push(job.folder),
            Ok(false) => break,
            Err(error) => {
                eprintln!("{}: {error}", job.encoder);
                outcome.failed.push((job.encoder, error));
            }
        }
    }
    outcome.interrupted = interrupted.load(Ordering::Relaxed);
    Ok(outcome)
}

fn plan(
    options: &FeatureOptions,
    bank: &EncoderBank,
    encoder: &str,
    dataset: &dyn Dataset,
) -> Result<Job, PrepareError> {
    let data = &options.config.data;
    let folder = feature_cache::folder_of(&options.out, encoder, data.resolution);
    let key = bank.cache_key(encoder, &options.config, dataset)?;
    let layout = CacheLayout::of_encoder(
        &bank.spec(encoder, data.resolution)?,
        options.stored,
        data.flip,
        device_kind(bank.device()),
        options.shard_bytes,
    );
    let mut contents = Contents::new(key, layout);
    let found = Contents::read(&folder)?;
    if let Some(found) = &found {
        contents.layout.shard_samples = found.layout.shard_samples;
    }
    let samples = contents
        .missing(&folder)
        .iter()
        .map(|s| s.end - s.start)
        .sum();
    let there = dataset.len() - samples;
    let [height, width] = contents.layout.grid.into();
    eprintln!(
        "{encoder}: {} images{} x {height} x {width} tokens x {}, {}: {} in {}{}",
        dataset.len(),
        if data.flip {
            ", each also mirrored,"
        } else {
            ""
        },
        contents.layout.width,
        options.stored.name(),
        HumanBytes(contents.bytes(dataset.len())),
        folder.display(),
        match there {
            0 => String::new(),
            _ if samples == 0 => "; complete".to_owned(),
            _ => format!("; {there} images are there, {samples} to do"),
        }
    );
    Ok(Job {
        encoder: encoder.to_owned(),
        folder,
        contents,
        samples,
    })
}

/// Compares what is to be written with what is free.
fn check_space(out: &Path, jobs: &[Job]) -> Result<(), PrepareError> {
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
        Ok(free) if needed > free => Err(PrepareError::Cache(CacheError::Space {
            folder: out.to_owned(),
            needed,
            free,
        })),
        Ok(free) => {
            if needed > 0 {
                eprintln!("{} to write, {} free", HumanBytes(needed), HumanBytes(free));
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

/// Fills one cache; `false` if it was interrupted.
fn make(
    job: &Job,
    options: &FeatureOptions,
    bank: &EncoderBank,
    dataset: &Arc<dyn Dataset>,
    interrupted: &AtomicBool,
) -> Result<bool, PrepareError> {
    let (key, layout) = (job.contents.key.clone(), job.contents.layout.clone());
    let mut writer = CacheWriter::open(&job.folder, key, layout)?;
    let missing = writer.missing();
    if missing.is_empty() {
        return Ok(true);
    }
    let config = &options.config;
    let encoder = bank.load_for(&job.encoder, config)?;
    let mut progress = ImageProgress::new(&job.encoder, job.samples);
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
                    let images = images_to_device(&batch, bank.device())?;
                    for mirrored in [false, true] {
                        if mirrored && !config.data.flip {
                            continue;
                        }
                        let tokens = encode(encoder.as_ref(), &images, mirrored)?;
                        rows.put(first, mirrored, &tokens)?;
                    }
                }
                progress.add(chunk.end - chunk.start);
            }
            writer.write(rows)?;
        }
        progress.finish(&match skipped.count {
            0 => String::new(),
            count => format!(", {count} of them could not be read and have no tokens"),
        });
        Ok(true)
    })
}

/// Parts of a shard that the encoder sees at once.
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

fn encode(encoder: &dyn Encoder, images: &Tensor, mirrored: bool) -> Result<Tokens, EncoderError> {
    match mirrored {
        true => encoder.encode(&images.f_flip([-1])?),
        false => encoder.encode(images),
    }
}
