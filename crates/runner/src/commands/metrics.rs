use std::path::Path;
use std::process::ExitCode;

use encoders::Encoder;
use metrics::spatial::SpatialMetrics;
use runner::encoder_bank::EncoderBank;
use runner::evaluation;
use tch::Device;
use training::Config;

use crate::cli::MetricsArgs;
use crate::failure::Failure;

pub fn run(arguments: &MetricsArgs) -> Result<ExitCode, Failure> {
    let device = super::device(&arguments.device)?;
    let bank = EncoderBank::new(super::registry(), device);
    println!("encoder,lds,cds,srss,rmsc");
    let mut failed = false;
    for name in &arguments.encoders {
        let data = Images {
            path: &arguments.data,
            split: &arguments.split,
            resolution: arguments.resolution,
            count: arguments.images,
        };
        let measured = bank
            .load(name, arguments.resolution, arguments.precision)
            .map_err(Failure::from)
            .and_then(|encoder| spatial(encoder.as_ref(), device, &data));
        match measured {
            Ok(metrics) => println!(
                "{name},{},{},{},{}",
                metrics.lds,
                metrics.cds,
                metrics
                    .srss
                    .map(|srss| srss.to_string())
                    .unwrap_or_default(),
                metrics.rmsc
            ),
            Err(error) => {
                failed = true;
                eprintln!("error: {name}: {error}");
            }
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}

/// Images on which an encoder is measured.
pub struct Images<'a> {
    /// The data set.
    pub path: &'a Path,
    /// Its split.
    pub split: &'a str,
    /// Side in pixels.
    pub resolution: u32,
    /// How many.
    pub count: usize,
}

/// The spatial metrics of an encoder.
pub fn spatial(
    encoder: &dyn Encoder,
    device: Device,
    images: &Images,
) -> Result<SpatialMetrics, Failure> {
    let mut config = Config::default();
    config.data.path = images.path.to_owned();
    config.data.split = images.split.to_owned();
    config.data.resolution = images.resolution;
    let dataset = data::open(&config.data.path, &config.data.training_split())?;
    Ok(evaluation::spatial_metrics(
        encoder,
        &dataset,
        &config,
        images.count,
        device,
    )?)
}
