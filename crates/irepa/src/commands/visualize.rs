//! `runner visualize`.

use std::process::ExitCode;

use alignment::SpatialNorm;
use anyhow::anyhow;
use data::OpenOptions;
use data::evenly_spaced;
use encoders::{Registry, split_names};
use evaluation::encoder_bank::EncoderBank;
use evaluation::visualize::{Format, Row, Sheet, TitledImages, VisualizeError, check_size};
use terminal::{errln, outln};

use crate::cli::VisualizeArgs;
use crate::failure::Failure;

pub fn run(arguments: &VisualizeArgs) -> Result<ExitCode, Failure> {
    let out = &arguments.out;
    Format::of(out).map_err(|error| Failure::usage(anyhow!("--out {error}")))?;
    super::arguments::check_out("--out", out)?;
    let norm = norm(arguments.alpha)?;
    let device = super::arguments::device(&arguments.device)?;
    let registry = Registry::of_project(None);
    let names = names(&registry, &arguments.encoders)?;
    let images = images(arguments)?;
    check_size(
        &arguments.out,
        images.len(),
        names.len(),
        arguments.anchors.len(),
        arguments.resolution,
    )
    .map_err(Failure::usage)?;

    let bank = EncoderBank::new(registry, device);
    let mut rows = Vec::new();
    let mut failed = false;
    for name in &names {
        errln!("encoding {} images with {name}", images.len());
        let row = bank
            .load(name, arguments.resolution, arguments.precision)
            .map_err(VisualizeError::from)
            .and_then(|encoder| {
                Row::new(encoder.as_ref(), &images, &arguments.anchors, &norm, device)
            });
        match row {
            Ok(row) => rows.push(row),
            Err(error @ VisualizeError::Anchor { .. }) => {
                return Err(Failure::usage(anyhow!("--anchors {error}")));
            }
            Err(error) => {
                failed = true;
                errln!("error: {name}: {}", Failure::from(error));
            }
        }
    }
    if rows.is_empty() {
        return Err(anyhow!("all encoders failed, so nothing was drawn").into());
    }
    let sheet = Sheet {
        images,
        rows,
        norm,
        smooth: arguments.smooth,
    };
    sheet
        .write(&arguments.out)
        .map_err(|error| anyhow::Error::from(error).context("--out"))?;
    outln!("{}", arguments.out.display());
    Ok(ExitCode::from(u8::from(failed)))
}

fn norm(alpha: f64) -> Result<SpatialNorm, Failure> {
    let norm = match SpatialNorm::default() {
        SpatialNorm::ZScore { eps, .. } => SpatialNorm::ZScore { alpha, eps },
        SpatialNorm::None => SpatialNorm::None,
    };
    norm.validate()
        .map_err(|error| Failure::usage(anyhow!("--alpha {alpha}: {error}")))?;
    Ok(norm)
}

/// The names of the encoders. Names joined by commas, which are one alignment target elsewhere, are separate encoders
/// here.
fn names(registry: &Registry, requested: &[String]) -> Result<Vec<String>, Failure> {
    let names: Vec<String> = requested
        .iter()
        .flat_map(|list| split_names(list))
        .collect();
    if names.is_empty() {
        return Err(Failure::usage(anyhow!("ENCODER: no name was specified")));
    }
    for name in &names {
        registry.check_name(name).map_err(Failure::usage)?;
    }
    Ok(names)
}

fn images(arguments: &VisualizeArgs) -> Result<TitledImages, Failure> {
    let resolution = arguments.resolution;
    if !arguments.images.is_empty() {
        return Ok(TitledImages::of_files(&arguments.images, resolution)?);
    }
    let options = OpenOptions {
        split: Some(arguments.split.clone()).filter(|split| !split.is_empty()),
        ..OpenOptions::default()
    };
    let dataset = data::open(&arguments.data, &options)
        .map_err(|error| Failure::usage(anyhow!("--data {error}")))?;
    let total = dataset.len();
    let ids = match arguments.ids.as_slice() {
        [] if arguments.count == 0 => {
            return Err(Failure::usage(anyhow!("--count 0: expected at least 1")));
        }
        [] => evenly_spaced(total.min(arguments.count as u64), total),
        ids => ids.to_vec(),
    };
    if let Some(wrong) = ids.iter().find(|&&id| id >= total) {
        return Err(Failure::usage(anyhow!(
            "--ids {wrong}: {} has images 0 to {}",
            dataset.name(),
            total.saturating_sub(1)
        )));
    }
    Ok(TitledImages::of_dataset(
        dataset.as_ref(),
        &ids,
        resolution,
    )?)
}
