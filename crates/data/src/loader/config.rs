//! The configuration of a [`Loader`](crate::Loader).

use serde::{Deserialize, Serialize};

use crate::batch::check_resolution;
use crate::error::DataError;
use crate::render::Background;

/// Configuration of a [`Loader`](crate::Loader).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderConfig {
    /// Images per batch, at least 1.
    pub batch_size: usize,
    /// Side of the centre crop in pixels, 1 to 8192.
    pub resolution: u32,
    /// Seed of the sample order and the flips.
    pub seed: u64,
    /// Number of threads that prefetch and decode, at most 1024; 0 decodes in the calling thread. The
    /// batches do not depend on this number.
    pub workers: usize,
    /// Number of batches to prefetch, at most 1024, in addition to the current one.
    pub prefetch: usize,
    /// Mirror each image left to right with probability 1/2, drawn anew each epoch.
    pub flip: bool,
    /// How transparent pixels are converted to RGB.
    pub background: Background,
    /// Share of corrupt samples, 0 to 1, above which the stream ends with an error. Until 1000 samples
    /// (or one epoch, if that is less) have been read, the share refers to that number.
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
    /// Checks the ranges of all values.
    pub(super) fn check(&self) -> Result<(), DataError> {
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
