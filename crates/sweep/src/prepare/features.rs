//! Computes feature caches: the tokens of a whole data set for one or more encoders.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use data::Dataset;
use encoders::feature_cache::{self, CacheLayout, Rows};
use encoders::{Precision, Registry};
use tch::{Device, Tensor};
use training::Config;

use super::PrepareError;
use super::fill::{Job, check_space};
use evaluation::encoder_bank::{EncoderBank, device_kind};
use terminal::errln;

/// Options of [`features`].
#[derive(Debug, Clone)]
pub struct FeatureOptions {
    /// The configuration that will be trained. Its data set, resolution, background, flips and encoder precision are
    /// used.
    pub config: Config,
    /// Names of the encoders.
    pub encoders: Vec<String>,
    /// Folder of the caches, with one sub-folder per encoder.
    pub out: PathBuf,
    /// Dtype of the stored tokens.
    pub stored: Precision,
    /// Approximate size of a shard in bytes.
    pub shard_bytes: u64,
}

/// How [`features`] ended.
#[derive(Debug, Default)]
pub struct FeatureOutcome {
    /// Folders of the complete caches.
    pub made: Vec<PathBuf>,
    /// Encoders whose cache could not be computed, with the reason.
    pub failed: Vec<(String, PrepareError)>,
    /// Whether it was interrupted. Shards that are written stay.
    pub interrupted: bool,
}

/// Computes the tokens of the training split with each encoder and stores them. Prints what it will write before it
/// starts, and does not start if the disk has not enough free space. A complete cache is not changed; an incomplete one
/// is completed.
///
/// # Errors
/// The data set cannot be opened, or the disk has not enough free space. An error of a single encoder is part of the
/// outcome, and the other encoders still run.
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
