//! Computes the moments of the latents of a whole data set with the frozen autoencoder of a configuration.

use std::path::PathBuf;
use std::slice;
use std::sync::atomic::AtomicBool;

use encoders::Precision;
use encoders::feature_cache::{CacheLayout, Rows};
use tch::{Device, Tensor};
use training::{Autoencoder, AutoencoderModel, Config, TrainError};

use super::PrepareError;
use super::fill::{Job, check_space};
use evaluation::autoencoder_files::AutoencoderFiles;
use evaluation::encoder_bank::device_kind;

/// Options of [`latents`].
#[derive(Debug, Clone)]
pub struct LatentOptions {
    /// The configuration that will be trained. Its data set, resolution, background, flips and autoencoder are used.
    pub config: Config,
    /// Folder of the cache.
    pub out: PathBuf,
    /// Dtype of the stored moments.
    pub stored: Precision,
    /// Approximate size of a shard in bytes.
    pub shard_bytes: u64,
}

/// Computes mean and standard deviation of the latents of the training split and stores them, as
/// [`features`](super::features) does with tokens. Returns false if it was interrupted; shards that are written stay.
///
/// # Errors
/// The configuration has no frozen autoencoder, its weights or the data set cannot be read, or the disk has not enough
/// free space.
pub fn latents(
    options: &LatentOptions,
    device: Device,
    interrupted: &AtomicBool,
) -> Result<bool, PrepareError> {
    let config = &options.config;
    let data = &config.data;
    let settings = match &config.model.autoencoder {
        Autoencoder::Identity => return Err(PrepareError::NoLatents("identity")),
        Autoencoder::Kl(settings) if settings.train => {
            return Err(PrepareError::NoLatents("trained with the denoiser"));
        }
        Autoencoder::Kl(settings) => settings,
    };
    if !settings.weights.is_file() {
        return Err(TrainError::NoAutoencoder(settings.weights.to_path_buf()).into());
    }
    config.apply_numerics(device)?;
    let dataset = data::open(&data.path, &data.training_split())?;
    let key = AutoencoderFiles::default().cache_key(config, dataset.as_ref())?;
    let key = key.ok_or(PrepareError::NoLatents("identity"))?;
    let side = i64::from(data.resolution);
    let shape = config.model.autoencoder.latent_shape(side);
    let shape = shape
        .map_err(TrainError::from)?
        .map(|size| usize::try_from(size).unwrap_or(0));
    let layout = CacheLayout::of_moments(
        shape,
        options.stored,
        data.flip,
        device_kind(device),
        options.shard_bytes,
    );
    let name = settings.weights.file_stem().unwrap_or_default();
    let job = Job::plan(&name.to_string_lossy(), options.out.clone(), key, layout)?;
    check_space(&options.out, slice::from_ref(&job))?;
    job.fill(config, &dataset, device, interrupted, || {
        let model = AutoencoderModel::load(config, device)?;
        Ok(
            move |rows: &mut Rows, first, mirrored, images: &Tensor| -> Result<(), PrepareError> {
                let moments = model.moments(images)?;
                let moments = moments.ok_or(PrepareError::NoLatents("identity"))?;
                Ok(rows.put_moments(first, mirrored, &moments)?)
            },
        )
    })
}
