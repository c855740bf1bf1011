//! The images on which a command measures encoders.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::anyhow;
use data::{Background, Dataset};
use encoders::Encoder;
use metrics::spatial::SpatialMetrics;
use tch::Device;
use training::Config;

use crate::failure::Failure;

/// The images on which an encoder is measured.
#[derive(Clone, Copy)]
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
    pub fn open(&self) -> Result<Arc<dyn Dataset>, Failure> {
        let options = self.config().data.training_split();
        data::open(self.path, &options).map_err(|error| Failure::usage(anyhow!("--data {error}")))
    }
}

/// Measures the spatial metrics of an encoder.
pub fn spatial(
    encoder: &dyn Encoder,
    device: Device,
    images: &ImageSelection,
) -> Result<SpatialMetrics, Failure> {
    let dataset = images.open()?;
    Ok(evaluation::spatial_metrics(
        encoder,
        &dataset,
        &images.config(),
        images.count,
        device,
        // Never interrupted: there is no state to save, so Ctrl-C may simply kill the process.
        &AtomicBool::new(false),
    )?)
}
