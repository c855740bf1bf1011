//! What the identities of encoders and autoencoders share.

use std::path::Path;

use encoders::EncoderError;
use encoders::feature_cache::{CacheError, Contents};
use tch::Device;
use thiserror::Error;
use training::CheckpointError;

/// Why the inputs of a cell cannot be identified: a file exists but cannot be read. If such a file were treated as missing
/// or changed, a finished cell would be trained again.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// An encoder's sidecar cannot be read.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// A feature cache cannot be read.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An autoencoder's weights cannot be read.
    #[error(transparent)]
    Weights(#[from] CheckpointError),
}

/// Reads the description of a cache; `None` if there is no cache, or if the description is damaged, which opening the
/// cache reports.
pub(crate) fn contents_of(folder: &Path) -> Result<Option<Contents>, CacheError> {
    match Contents::read(folder) {
        Err(CacheError::Damaged { .. }) => Ok(None),
        contents => contents,
    }
}

/// The kind of a device, as recorded in feature caches.
pub fn device_kind(device: Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        _ => "other",
    }
}
