//! `runner evaluate`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use encoders::Inception;
use evaluation::encoder_bank::EncoderBank;
use evaluation::{
    EvaluationError, Extractor, ImageOptions, ImageSet, QualityOptions, Reference, Scoring, Stage,
    evaluate,
};
use metrics::quality::{KidOptions, Splits};
use terminal::image_progress::ImageProgress;
use terminal::{errln, out, outln};

use crate::cli::EvaluateArgs;
use crate::failure::Failure;

pub fn run(arguments: &EvaluateArgs) -> Result<ExitCode, Failure> {
    if let Some(path) = &arguments.out {
        super::arguments::check_out("--out", path)?;
    }
    let device = super::arguments::device(&arguments.device)?;
    let images = ImageOptions {
        split: None,
        resolution: arguments.resolution,
        background: arguments.background,
    };
    // Images are opened before the network is loaded, so that a wrong path is reported at once.
    let samples = ImageSet::open(&arguments.samples, &images).map_err(Failure::usage)?;
    if !arguments.reference.exists() {
        return Err(Failure::usage(anyhow!(
            "--reference {}: no such file or folder",
            arguments.reference.display()
        )));
    }
    let reference = Reference::open(
        &arguments.reference,
        &samples,
        arguments.reference_split.clone(),
        arguments.background,
    )
    .map_err(|error| Failure::usage(anyhow!("--reference: {error}")))?;
    let registry = encoders::Registry::of_project(None);
    let name = arguments.encoder.as_str();
    if !Inception::NAMES.contains(&name) {
        registry.check_name(name).map_err(Failure::usage)?;
    }
    let options = QualityOptions {
        metrics: arguments.metrics.clone(),
        scoring: Scoring {
            splits: Splits::Size(arguments.split_size),
            kid: KidOptions {
                subsets: arguments.kid_subsets,
                subset_size: arguments.kid_subset_size,
                seed: arguments.seed,
            },
            neighbours: arguments.neighbours,
        },
        cache: arguments.cache.clone(),
    };
    let interrupted = terminal::interrupts::watch_interrupts()?;
    let bank = EncoderBank::new(registry, device);
    let extractor = match Extractor::load(&bank, name, samples.size().0, interrupted) {
        Err(EvaluationError::Interrupted) => return Ok(interrupted_code()),
        extractor => extractor?,
    };
    let mut bar: Option<(Stage, ImageProgress)> = None;
    let mut last_done = 0;
    let outcome = evaluate(
        &samples,
        &reference,
        &extractor,
        &options,
        interrupted,
        |stage, done, total| {
            if bar.as_ref().is_none_or(|(current, _)| *current != stage) {
                let name = match stage {
                    Stage::Reference => "reference",
                    Stage::Samples => "samples",
                };
                bar = Some((stage, ImageProgress::new(name, total as u64)));
                last_done = 0;
            }
            if let Some((_, progress)) = &mut bar {
                progress.add((done - last_done) as u64);
                last_done = done;
                if done == total {
                    progress.finish("");
                }
            }
        },
    );
    let report = match outcome {
        Ok(report) => report,
        Err(EvaluationError::Interrupted) => return Ok(interrupted_code()),
        Err(error) if error.is_usage() => return Err(Failure::usage(error)),
        Err(error) => return Err(error.into()),
    };
    for warning in &report.warnings {
        errln!("warning: {warning}");
    }
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| default_out(&arguments.samples));
    report
        .write(&out)
        .with_context(|| format!("cannot write {}", out.display()))?;
    out!("{}", report.table());
    outln!("{}", out.display());
    Ok(ExitCode::SUCCESS)
}

fn interrupted_code() -> ExitCode {
    errln!("{}", EvaluationError::Interrupted);
    ExitCode::from(terminal::interrupts::INTERRUPTED_CODE)
}

/// The JSON file beside the samples: `samples.evaluation.json` for `samples/` and for `samples.npz`.
fn default_out(samples: &Path) -> PathBuf {
    let absolute = std::path::absolute(samples).unwrap_or_else(|_| samples.to_owned());
    let name = match absolute.extension() {
        Some(extension) if extension == "npz" => absolute.file_stem(),
        _ => absolute.file_name(),
    };
    let name = name.unwrap_or_default().to_string_lossy().into_owned();
    samples.with_file_name(format!("{name}.evaluation.json"))
}
