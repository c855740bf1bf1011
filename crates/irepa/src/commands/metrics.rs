//! `runner metrics`.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow};
use data::Dataset;
use encoders::Encoder;
use evaluation::encoder_bank::EncoderBank;
use evaluation::{self, EvaluationError, ImageSelection, ProbeAccuracy, ProbeData};
use metrics::figures::{Figure, Kind};
use report::ranking::Ranking;
use tch::Device;
use terminal::{errln, out, outln};

use crate::cli::MetricsArgs;
use crate::failure::Failure;

/// Default number of images without `--rank`.
const IMAGES: usize = 64;
/// Default number of images with `--rank`.
const RANK_IMAGES: usize = 256;

pub fn run(arguments: &MetricsArgs) -> Result<ExitCode, Failure> {
    if let Some(path) = &arguments.json {
        super::arguments::check_out("--json", path)?;
    }
    let device = super::arguments::device(&arguments.device)?;
    let registry = encoders::Registry::of_project(None);
    let names =
        super::arguments::installed_encoders(&arguments.encoders, arguments.resolution, &registry)?;
    let bank = EncoderBank::new(registry, device);
    let default = match arguments.rank {
        Some(_) => RANK_IMAGES,
        None => IMAGES,
    };
    let data = ImageSelection {
        path: &arguments.data,
        split: &arguments.split,
        resolution: arguments.resolution,
        background: arguments.background,
        count: arguments.images.unwrap_or(default),
    };
    let refused = |error| Failure::usage(anyhow!("--data {error}"));
    let dataset = data.open().map_err(refused)?;
    let probe = arguments
        .probe
        .map(|images| {
            let split = ImageSelection {
                split: &arguments.probe_split,
                ..data
            };
            let training = match split.split == data.split {
                true => Arc::clone(&dataset),
                false => split.open().map_err(refused)?,
            };
            evaluation::ReferenceClasses::new(training.as_ref(), dataset.as_ref())
                .map_err(|error| Failure::usage(anyhow!("--split {}: {error}", data.split)))?;
            Ok::<_, Failure>(Probe {
                training,
                held_out: Arc::clone(&dataset),
                images,
            })
        })
        .transpose()?;
    if arguments.rank.is_none() {
        let probe_columns = if probe.is_some() {
            ",linear_probe,linear_probe_class"
        } else {
            ""
        };
        let columns: Vec<&str> = Figure::of_kind(Kind::Spatial).map(Figure::name).collect();
        outln!("encoder,{}{probe_columns}", columns.join(","));
    }
    let interrupted = terminal::interrupts::watch_interrupts()?;
    let mut measured = Vec::new();
    let mut failed = false;
    for (index, name) in names.iter().enumerate() {
        if arguments.rank.is_some() {
            errln!("{name}, {} of {}", index + 1, names.len());
        }
        let metrics = bank
            .load_until(interrupted, name, arguments.resolution, arguments.precision)
            .map_err(EvaluationError::from)
            .and_then(|encoder| encoder.ok_or(EvaluationError::Interrupted))
            .and_then(|encoder| {
                let metrics = evaluation::spatial_metrics(
                    encoder.as_ref(),
                    &dataset,
                    &data.config(),
                    data.count,
                    device,
                    interrupted,
                )?;
                let accuracy = match &probe {
                    Some(probe) => probe.accuracy(encoder.as_ref(), device, &data, interrupted)?,
                    None => None,
                };
                Ok((metrics, accuracy))
            });
        match metrics {
            Ok((metrics, accuracy)) => {
                if arguments.rank.is_none() {
                    let figures = metrics.figures();
                    out!("{name}");
                    for figure in Figure::of_kind(Kind::Spatial) {
                        let value = figures.get(figure).map(|value| value.to_string());
                        out!(",{}", value.unwrap_or_default());
                    }
                    if probe.is_some() {
                        let patch = accuracy.map(|accuracy| accuracy.patch.to_string());
                        let class = accuracy.and_then(|accuracy| accuracy.class);
                        let class = class.map(|class| class.to_string());
                        out!(
                            ",{},{}",
                            patch.unwrap_or_default(),
                            class.unwrap_or_default()
                        );
                    }
                    outln!();
                }
                measured.push((name.clone(), metrics));
            }
            Err(EvaluationError::Interrupted) => break,
            Err(error) => {
                failed = true;
                errln!("error: {name}: {}", Failure::from(error));
            }
        }
    }
    let is_interrupted = interrupted.load(Ordering::Relaxed);
    if is_interrupted {
        errln!(
            "interrupted: {} of {} encoders were measured",
            measured.len(),
            names.len()
        );
    }
    if let (Some(by), false) = (arguments.rank, measured.is_empty()) {
        let images = data.count.min(dataset.len() as usize);
        let identity = (dataset.name(), dataset.fingerprint());
        let ranking = Ranking::new(by, identity, images, data.resolution, measured);
        outln!("{}", ranking.table());
        errln!(
            "{images} images of {}; ranked by the column with *, highest first",
            ranking.data
        );
        if let Some(path) = &arguments.json {
            ranking
                .write(path)
                .with_context(|| format!("--json {}", path.display()))?;
        }
    }
    Ok(match is_interrupted {
        true => ExitCode::from(terminal::interrupts::INTERRUPTED_CODE),
        false => ExitCode::from(u8::from(failed)),
    })
}

/// The images that linear probes are trained and scored on.
struct Probe {
    training: Arc<dyn Dataset>,
    held_out: Arc<dyn Dataset>,
    images: usize,
}

impl Probe {
    fn accuracy(
        &self,
        encoder: &dyn Encoder,
        device: Device,
        images: &ImageSelection,
        interrupted: &AtomicBool,
    ) -> Result<Option<ProbeAccuracy>, EvaluationError> {
        let data = ProbeData {
            training: &self.training,
            held_out: &self.held_out,
            images: self.images,
            cache: None,
        };
        let config = images.config();
        let progress = |_, _| {};
        evaluation::probe(encoder, "", data, &config, device, interrupted, progress)
    }
}
