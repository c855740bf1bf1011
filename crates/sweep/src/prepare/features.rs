//! Feature caches: the tokens of a whole data set, by each of some encoders.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use data::Dataset;
use encoders::feature_cache::{self, CacheLayout, Rows};
use encoders::{Precision, Registry};
use tch::{Device, Tensor};
use training::Config;

use super::PrepareError;
use super::fill::{Job, check_space};
use console::errln;
use evaluation::encoder_bank::{EncoderBank, device_kind};

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
    options.config.apply_numerics(device)?;
    let data = &options.config.data;
    let dataset = data::open(&data.path, &data.training_split())?;
    let bank = EncoderBank::new(registry, device);
    let mut outcome = FeatureOutcome::default();
    let mut jobs = Vec::new();
    for encoder in &options.encoders {
        match plan(options, &bank, encoder, dataset.as_ref()) {
            Ok(job) => jobs.push(job),
            Err(error) => {
                errln!("{encoder}: {error}");
                outcome.failed.push((encoder.clone(), error));
            }
        }
    }
    check_space(&options.out, &jobs)?;
    for job in jobs {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        let load = || {
            let encoder = bank.load_for(&job.name, &options.config)?;
            Ok(
                move |rows: &mut Rows,
                      first,
                      mirrored,
                      images: &Tensor|
                      -> Result<(), PrepareError> {
                    Ok(rows.put(first, mirrored, &encoder.encode(images)?)?)
                },
            )
        };
        match job.fill(&options.config, &dataset, device, interrupted, load) {
            Ok(true) => outcome.made.push(job.folder),
            Ok(false) => break,
            Err(error) => {
                errln!("{}: {error}", job.name);
                outcome.failed.push((job.name, error));
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
    let key = bank.cache_key(encoder, &options.config, dataset)?;
    let layout = CacheLayout::of_encoder(
        &bank.spec(encoder, data.resolution)?,
        options.stored,
        data.flip,
        device_kind(bank.device()),
        options.shard_bytes,
    );
    let folder = feature_cache::folder_of(&options.out, encoder, data.resolution);
    Job::plan(encoder, folder, key, layout)
}
