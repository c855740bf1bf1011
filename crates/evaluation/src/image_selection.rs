//! The images on which encoders are measured.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use data::{Background, DataError, Dataset};
use encoders::Encoder;
use metrics::spatial::SpatialMetrics;
use tch::Device;
use training::Config;

use crate::{EvaluationError, spatial_metrics};

/// The images on which an encoder is measured.
#[derive(Debug, Clone, Copy)]
pub struct ImageSelection<'a> {
    /// The data set.
    pub path: &'a Path,
    /// The split of the data set.
    pub split: &'a str,
    /// Side in pixels.
    pub resolution: u32,
    /// Background of transparent pixels.
    pub background: Background,
    /// Number of images.
    pub count: usize,
}

impl ImageSelection<'_> {
    /// The configuration that opens these images.
    pub fn config(&self) -> Config {
        let mut config = Config::default();
        config.data.path = self.path.to_owned().into();
        config.data.split = self.split.to_owned();
        config.data.resolution = self.resolution;
        config.data.background = self.background;
        config
    }

    /// Opens the data set.
    ///
    /// # Errors
    /// The data set cannot be opened.
    pub fn open(&self) -> Result<Arc<dyn Dataset>, DataError> {
        data::open(self.path, &self.config().data.training_split())
    }

    /// Measures the spatial metrics of an encoder on these images.
    ///
    /// # Errors
    /// The data set cannot be opened; those of [`spatial_metrics`].
    pub fn spatial_metrics(
        &self,
        encoder: &dyn Encoder,
        device: Device,
    ) -> Result<SpatialMetrics, EvaluationError> {
        spatial_metrics(
            encoder,
            &self.open()?,
            &self.config(),
            self.count,
            device,
            // Never interrupted: there is no state to save, so Ctrl-C may simply kill the process.
            &AtomicBool::new(false),
        )
    }
}
