use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use encoders::{Inception, Precision, Registry};
use metrics::quality::{KidOptions, Splits};
use runner::encoder_bank::EncoderBank;
use runner::evaluation::{
    EvaluationError, Extractor, ImageOptions, ImageSet, QualityOptions, Stage, evaluate,
};
use runner::image_progress::ImageProgress;
use tch::Device;

use crate::cli::EvaluateArgs;
use crate::failure::Failure;

pub fn run(arguments: &EvaluateArgs) -> Result<ExitCode, Failure> {
    let device = super::device(&arguments.device)?;
    let images = ImageOptions {
        split: None,
        resolution: arguments.resolution,
        background: arguments.background,
    };
    // Before the network is loaded: a wrong path should not wait for it.
    let samples = ImageSet::open(&arguments.samples, &images).map_err(Failure::usage)?;
    if !arguments.reference.exists() {
        return Err(Failure::usage(anyhow!(
            "--reference {}: no such file or folder",
            arguments.reference.display()
        )));
    }
    let extractor = extractor(&arguments.encoder, samples.size().0, device)?;
    let options = QualityOptions {
        metrics: arguments.metrics.clone(),
        splits: Splits::Size(arguments.split_size),
        kid: KidOptions {
            subsets: arguments.kid_subsets,
            subset_size: arguments.kid_subset_size,
            seed: arguments.seed,
        },
        neighbours: arguments.neighbours,
        background: arguments.background,
        reference_split: arguments.reference_split.clone(),
        cache: arguments.cache.clone(),
    };
    let interrupted = super::watch_interrupts()?;
    let mut bar: Option<(Stage, ImageProgress)> = None;
    let mut before = 0;
    let outcome = evaluate(
        &samples,
        &arguments.reference,
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
                before = 0;
            }
            if let Some((_, progress)) = &mut bar {
                progress.add((done - before) as u64);
                before = done;
                if done == total {
                    progress.finish("");
                }
            }
        },
    );
    let report = match outcome {
        Ok(report) => report,
        Err(EvaluationError::Interrupted) => {
            eprintln!("{}", EvaluationError::Interrupted);
            return Ok(ExitCode::from(130));
        }
        Err(error @ EvaluationError::NotAllowed { .. }) => return Err(Failure::usage(error)),
        Err(error) => return Err(error.into()),
    };
    for warning in &report.warnings {
        eprintln!("warning: {warning}");
    }
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| beside(&arguments.samples));
    report
        .write(&out)
        .with_context(|| format!("cannot write {}", out.display()))?;
    print!("{}", report.table());
    println!("{}", out.display());
    Ok(ExitCode::SUCCESS)
}

/// The network of that name, for images of `side` pixels.
fn extractor(name: &str, side: u32, device: Device) -> Result<Extractor, Failure> {
    let registry: Registry = super::registry();
    if Inception::NAMES.contains(&name) {
        let path = Inception::find(&registry, name)?;
        let inception = Inception::load(&path, device)?;
        return Ok(Extractor::Inception(Box::new(inception)));
    }
    registry.check_name(name).map_err(Failure::usage)?;
    let identity = registry.identity(name, i64::from(side));
    let bank = EncoderBank::new(registry, device);
    Ok(Extractor::Encoder {
        encoder: bank.load(name, side, Precision::Fp32)?,
        identity: identity.unwrap_or_default(),
    })
}

/// `samples/` and `samples.npz` have `samples.evaluation.json`.
fn beside(samples: &Path) -> PathBuf {
    let absolute = std::path::absolute(samples).unwrap_or_else(|_| samples.to_owned());
    let name = match absolute.extension() {
        Some(extension) if extension == "npz" => absolute.file_stem(),
        _ => absolute.file_name(),
    };
    let name = name.unwrap_or_default().to_string_lossy().into_owned();
    samples.with_file_name(format!("{name}.evaluation.json"))
}
