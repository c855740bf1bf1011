//! `runner sample`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use evaluation::sampling::{self, ClassOrder, ClassRule, Recipe, SampleFolder, SamplingError};
use ndarray::{Array4, Axis};
use report::image_grid::{GridLayout, write_grid};
use sweep::config_file;
use tch::{Device, Tensor};
use terminal::image_progress::ImageProgress;
use terminal::{errln, outln};
use training::checkpoint::VAE;
use training::{Checkpoint, Config, Sampling, checkpoint, read_tensors};

use crate::cli::SampleArgs;
use crate::failure::Failure;

/// Maximum number of images in the picture of `--grid`.
const GRID: u64 = 64;

pub fn run(arguments: &SampleArgs) -> Result<ExitCode, Failure> {
    if let Some(picture) = &arguments.grid {
        check_picture(picture)?;
    }
    let checkpoint = &arguments.checkpoint;
    let sources = sources(checkpoint)?;
    let config = config(arguments, checkpoint)?;
    let devices = devices(&arguments.device)?;
    let Weights {
        source,
        file,
        denoiser,
        vae,
        name,
    } = newest_weights(checkpoint, &sources, arguments.no_ema)?;
    let samplers = devices
        .iter()
        .map(|device| {
            let sampling = Sampling::new(&config, &denoiser, vae.as_deref(), *device)?;
            Ok(sampling.named(&name))
        })
        .collect::<Result<Vec<_>, training::TrainError>>()
        .with_context(|| source.display().to_string())?;
    drop((denoiser, vae));
    let (Some(device), Some(first)) = (devices.first(), samplers.first()) else {
        return Err(Failure::usage(anyhow!("--device names no device")));
    };
    let order = match arguments.random_labels {
        true => ClassOrder::Random,
        false => ClassOrder::Balanced,
    };
    let seed = config.sample.seed;
    let classes = ClassRule::new(&arguments.labels, first.num_classes(), order, seed)
        .map_err(|error| Failure::usage(anyhow!("--labels: {error}")))?;
    let recipe = Recipe::new(checkpoint::file_sha256(&file)?, &config, classes, *device);

    let npz = arguments.out.extension().is_some_and(|end| end == "npz");
    let path = match npz {
        true => arguments.out.with_extension("npz.partial"),
        false => arguments.out.clone(),
    };
    if path.is_file() {
        return Err(Failure::usage(anyhow!(
            "--out {}: this is a file; choose a folder, or a file that ends in .npz",
            path.display()
        )));
    }
    // If the .npz exists beside its partial folder, a call with --fresh was interrupted; it is resumed.
    if npz && arguments.out.exists() && !arguments.fresh && !path.exists() {
        return Err(Failure::usage(anyhow!(
            "{} already exists; use --fresh to draw it again",
            arguments.out.display()
        )));
    }
    // Signals are handled before anything is written.
    let interrupted = terminal::interrupts::watch_interrupts()?;
    let folder = SampleFolder::open(&path, &recipe, arguments.fresh).map_err(failure)?;
    let count = arguments.count;
    let mut progress: Option<ImageProgress> = None;
    let outcome = sampling::draw(
        &folder,
        samplers,
        &recipe.classes,
        count,
        interrupted,
        |done| match &mut progress {
            Some(progress) => progress.add(done - progress.done()),
            // The first call tells how many images exist already.
            None => {
                let new = progress.insert(ImageProgress::new("samples", count));
                new.resume_at(done);
            }
        },
    );
    if let Some(progress) = &progress {
        progress.finish("");
    }
    let outcome = outcome?;
    if outcome.interrupted {
        errln!(
            "interrupted after {} of {count} images: run the same command again to resume",
            outcome.existing + outcome.drawn
        );
        return Ok(ExitCode::from(terminal::interrupts::INTERRUPTED_CODE));
    }
    if outcome.existing > 0 {
        errln!(
            "{} of {count} images already existed, {} were drawn",
            outcome.existing,
            outcome.drawn
        );
    }
    if let Some(picture) = &arguments.grid {
        write_picture(picture, &folder, count.min(GRID))?;
    }
    if npz {
        sampling::pack(&arguments.out, &folder, &recipe.classes, count)?;
        folder.remove()?;
    } else {
        let more = folder.beyond(count)?;
        if more > 0 {
            errln!("note: the folder contains {more} more images of the same settings");
        }
    }
    outln!("{}", arguments.out.display());
    Ok(ExitCode::SUCCESS)
}

fn failure(error: SamplingError) -> Failure {
    match error.is_usage() {
        true => Failure::usage(error),
        false => error.into(),
    }
}

/// The sources of weights: the checkpoints of a run, newest first, or else the checkpoint or file that was named.
fn sources(named: &Path) -> Result<Vec<PathBuf>, Failure> {
    let refused = |reason: String| Err(Failure::usage(anyhow!("{}: {reason}", named.display())));
    if !named.exists() {
        return refused("there is no such file or folder".to_owned());
    }
    if named.join("cells").is_dir() {
        return refused(format!(
            "this is the folder of a sweep; name the folder of a cell, {}",
            named.join("cells").join("ID").display()
        ));
    }
    let checkpoints = named.join("checkpoints");
    // A broken symbolic link counts as existing, so that reading it reports the error.
    if fs::symlink_metadata(&checkpoints).is_ok() {
        let mut found = checkpoint::list(&checkpoints)?;
        if found.is_empty() {
            return Err(Failure::usage(anyhow!(
                "{} has no checkpoint yet",
                checkpoints.display()
            )));
        }
        found.reverse();
        return Ok(found);
    }
    if named.is_dir() && !checkpoint::list(named)?.is_empty() {
        return refused(
            "name the folder of the run, which is the parent folder, or one of its checkpoints"
                .to_owned(),
        );
    }
    let is_checkpoint = named.join("manifest.json").exists()
        || named
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("step-"));
    if named.is_dir() && !is_checkpoint {
        return refused("this is neither the folder of a run nor a checkpoint".to_owned());
    }
    Ok(vec![named.to_owned()])
}

/// The weights of the first source that is not damaged. Damaged sources before it are skipped with a warning.
fn newest_weights(named: &Path, sources: &[PathBuf], no_ema: bool) -> Result<Weights, Failure> {
    if let [only] = sources {
        if only != named {
            errln!("{}", only.display());
        }
        return weights(only, no_ema).map_err(|error| match only == named && error.is_damage() {
            // A damaged file that the command names is an error of usage.
            true => error.into_usage(),
            false => error,
        });
    }
    let mut errors = Vec::new();
    for source in sources {
        match weights(source, no_ema) {
            Ok(weights) => {
                errln!("{}", source.display());
                return Ok(weights);
            }
            Err(error) if error.is_damage() => {
                tracing::warn!("skipping a damaged checkpoint: {error}");
                errors.push(error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    Err(anyhow!(
        "{}: none of its {} checkpoints is intact: {}",
        named.display(),
        errors.len(),
        errors.join("; ")
    )
    .into())
}

/// Refuses a path to which the picture of `--grid` cannot be written.
fn check_picture(path: &Path) -> Result<(), Failure> {
    let png = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
    if !png {
        return Err(Failure::usage(anyhow!(
            "--grid {}: the picture is a PNG; choose a file that ends in .png",
            path.display()
        )));
    }
    super::arguments::check_out("--grid", path)
}

/// The configuration, overridden by the flags and checked with them.
fn config(arguments: &SampleArgs, named: &Path) -> Result<Config, Failure> {
    let path = match &arguments.config {
        Some(path) => path.clone(),
        None => config_of(named)?,
    };
    let config = config_file::load_with(&path, &arguments.settings, |config| {
        let sample = &mut config.sample;
        // A count of 0 would disable the check of the sampler settings.
        sample.count = arguments.count as usize;
        let sampler = &mut sample.sampler;
        sampler.method = arguments.sampler.unwrap_or(sampler.method);
        sampler.num_steps = arguments.steps.unwrap_or(sampler.num_steps);
        sampler.cfg_scale = arguments.cfg_scale.unwrap_or(sampler.cfg_scale);
        if let Some(interval) = arguments.guidance_interval {
            (sampler.guidance_low, sampler.guidance_high) = (interval.low, interval.high);
        }
        sample.seed = arguments.seed.unwrap_or(sample.seed);
        if let Some(batch_size) = arguments.batch_size {
            sample.batch_size = batch_size as usize;
        }
    })?;
    Ok(config)
}

/// The configuration of a run or of a checkpoint: `RUN/config.toml` for `RUN/checkpoints/step-N`.
fn config_of(checkpoint: &Path) -> Result<PathBuf, Failure> {
    if checkpoint.join("checkpoints").is_dir() {
        return Ok(checkpoint.join("config.toml"));
    }
    let run = checkpoint.parent().and_then(Path::parent).ok_or_else(|| {
        Failure::usage(anyhow!(
            "{} is not a checkpoint folder RUN/checkpoints/step-N; specify its configuration with --config",
            checkpoint.display()
        ))
    })?;
    if checkpoint.is_file() {
        return Err(Failure::usage(anyhow!(
            "{} is a file of weights; specify their configuration with --config",
            checkpoint.display()
        )));
    }
    Ok(run.join("config.toml"))
}

/// The devices, which must all be of one kind: images of CPU and CUDA are not bitwise equal.
fn devices(names: &[String]) -> Result<Vec<Device>, Failure> {
    let devices = names
        .iter()
        .map(|name| super::arguments::device(name.trim()))
        .collect::<Result<Vec<_>, _>>()?;
    let on_cpu = devices.iter().filter(|device| **device == Device::Cpu);
    if !matches!(on_cpu.count(), count if count == 0 || count == devices.len()) {
        return Err(Failure::usage(anyhow!(
            "--device {}: CPU and CUDA do not draw the same images; name devices of one kind",
            names.join(",")
        )));
    }
    Ok(devices)
}

/// The weights that images are drawn with.
struct Weights {
    /// The checkpoint, or the file of weights.
    source: PathBuf,
    /// The file of the denoiser's weights.
    file: PathBuf,
    denoiser: Vec<(String, Tensor)>,
    /// The weights of the autoencoder, if it was trained with the denoiser.
    vae: Option<Vec<(String, Tensor)>>,
    /// A description, for error messages.
    name: String,
}

fn weights(path: &Path, no_ema: bool) -> Result<Weights, Failure> {
    if path.is_file() {
        if no_ema {
            return Err(Failure::usage(anyhow!(
                "--no-ema needs a checkpoint folder; for a file, name the file of the weights to use"
            )));
        }
        return Ok(Weights {
            source: path.to_owned(),
            file: path.to_owned(),
            denoiser: read_tensors(path)?,
            vae: None,
            name: format!("the weights in {}", path.display()),
        });
    }
    let mut saved = Checkpoint::load(path)?;
    let vae = saved.others.remove(VAE);
    let (file, what, denoiser) = match no_ema {
        true => ("model.safetensors", "weights", saved.model),
        false => ("ema.safetensors", "averaged weights", saved.ema),
    };
    Ok(Weights {
        source: path.to_owned(),
        file: path.join(file),
        denoiser,
        vae,
        name: format!("the {what} of step {} in {}", saved.step, path.display()),
    })
}

fn write_picture(path: &Path, folder: &SampleFolder, count: u64) -> Result<(), Failure> {
    let images = (0..count)
        .map(|index| folder.read(index))
        .collect::<Result<Vec<_>, _>>()?;
    let views: Vec<_> = images.iter().map(|image| image.view()).collect();
    let images: Array4<u8> = ndarray::stack(Axis(0), &views).with_context(|| {
        format!(
            "{}: the images have different sizes",
            folder.path().display()
        )
    })?;
    let images = images.permuted_axes([0, 3, 1, 2]);
    let (count, _, height, width) = images.dim();
    let layout = GridLayout::for_images(count, height, width);
    write_grid(path, images.view(), layout)?;
    Ok(())
}
