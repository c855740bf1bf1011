//! Precomputes what training would otherwise compute in every epoch: the tokens of encoders and the moments of latents
//! of a whole data set.

mod features;
mod fill;
mod latents;

use data::DataError;
use encoders::EncoderError;
use encoders::feature_cache::CacheError;
use thiserror::Error;
use training::{CheckpointError, TrainError};

pub use features::{FeatureOptions, FeatureOutcome, features};
pub use latents::{LatentOptions, latents};

/// Why tokens or moments could not be computed or stored.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// The data set cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The encoder cannot be loaded, or failed.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// The cache cannot be read or written.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The autoencoder's weights cannot be read.
    #[error(transparent)]
    Weights(#[from] CheckpointError),
    /// The images could not be moved to the device, or the autoencoder failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The configuration has no latents.
    #[error("`model.autoencoder` is {0}: there are no latents to store")]
    NoLatents(&'static str),
}
