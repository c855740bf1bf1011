use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use ndarray::{Array1, Array4, Axis};
use ndarray_npy::NpzWriter;
use runner::image_grid::{GridLayout, write_grid, write_image};
use runner::{config_file, image_array};
use tch::Tensor;
use training::checkpoint::VAE;
use training::{Checkpoint, Config, Sampling, read_tensors};

use crate::cli::SampleArgs;
use crate::failure::Failure;

pub fn run(arguments: &SampleArgs) -> Result<ExitCode, Failure> {
    let config = match &arguments.config {
        Some(path) => config_file::load(path, &arguments.settings)?,
        None => config_of(&arguments.checkpoint, &arguments.settings)?,
    };
    let device = super::device(&arguments.device)?;
    let (weights, vae) = weights(arguments)?;
    let sampling = Sampling::new(&config, &weights, vae.as_deref(), device)
        .with_context(|| arguments.checkpoint.display().to_string())?;
    let labels = labels(&arguments.labels, arguments.count, sampling.num_classes())?;
    let images = image_array(&sampling.sample(&labels, |done| {
        eprintln!("{done} of {} samples", labels.len());
    })?)?;
    if arguments
        .out
        .extension()
        .is_some_and(|extension| extension == "npz")
    {
        write_npz(&arguments.out, &images, &labels)?;
    } else {
        write_pngs(&arguments.out, &images)?;
    }
    println!("{}", arguments.out.display());
    Ok(ExitCode::SUCCESS)
}

type Weights = Vec<(String, Tensor)>;

/// Those of the denoiser, and of an autoencoder that was trained with it.
fn weights(arguments: &SampleArgs) -> Result<(Weights, Option<Weights>), Failure> {
    if arguments.checkpoint.is_file() {
        if arguments.no_ema {
            return Err(Failure::usage(anyhow!(
                "--no-ema goes with a checkpoint folder; name the file of the weights you want"
            )));
        }
        return Ok((read_tensors(&arguments.checkpoint)?, None));
    }
    let mut checkpoint = Checkpoint::load(&arguments.checkpoint)?;
    let vae = checkpoint.others.remove(VAE);
    let weights = match arguments.no_ema {
        true => checkpoint.model,
        false => checkpoint.ema,
    };
    Ok((weights, vae))
}

/// The configuration beside a checkpoint: `RUN/checkpoints/step-N` has `RUN/config.toml`.
fn config_of(checkpoint: &Path, settings: &[String]) -> Result<Config, Failure> {
    let run = checkpoint.parent().and_then(Path::parent).ok_or_else(|| {
        Failure::usage(anyhow!(
            "{} is not a checkpoint folder RUN/checkpoints/step-N; name its configuration with --config",
            checkpoint.display()
        ))
    })?;
    if checkpoint.is_file() {
        return Err(Failure::usage(anyhow!(
            "{} is a file of weights: name their configuration with --config",
            checkpoint.display()
        )));
    }
    Ok(config_file::load(&run.join("config.toml"), settings)?)
}

fn labels(given: &[i64], count: usize, classes: i64) -> Result<Vec<i64>, Failure> {
    if let Some(wrong) = given.iter().find(|label| !(0..classes).contains(*label)) {
        return Err(Failure::usage(anyhow!(
            "--labels {wrong}: the model has classes 0 to {}",
            classes - 1
        )));
    }
    if count == 0 {
        return Err(Failure::usage(anyhow!("--count 0: at least 1")));
    }
    let all: Vec<i64> = (0..classes).collect();
    let given = if given.is_empty() { &all } else { given };
    Ok(given.iter().cycle().take(count).copied().collect())
}

fn write_pngs(folder: &Path, images: &Array4<u8>) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))
        .map_err(Failure::usage)?;
    for (index, image) in images.axis_iter(Axis(0)).enumerate() {
        write_image(&folder.join(format!("{index:06}.png")), image, 1)?;
    }
    let (count, _, height, width) = images.dim();
    let layout = GridLayout::for_images(count, height, width);
    write_grid(&folder.join("grid.png"), images.view(), layout)?;
    Ok(())
}

/// The ADM evaluator's layout: `arr_0` u8 `[N, H, W, 3]`, `arr_1` the labels `[N]`.
fn write_npz(path: &Path, images: &Array4<u8>, labels: &[i64]) -> Result<(), Failure> {
    let context = || format!("cannot write {}", path.display());
    let temporary = path.with_extension("npz.partial");
    let file = File::create(&temporary)
        .with_context(context)
        .map_err(Failure::usage)?;
    let mut npz = NpzWriter::new_compressed(file);
    let pixels = images.view().permuted_axes([0, 2, 3, 1]);
    npz.add_array("arr_0", &pixels.as_standard_layout())
        .with_context(context)?;
    npz.add_array("arr_1", &Array1::from(labels.to_vec()))
        .with_context(context)?;
    npz.finish()
        .with_context(context)?
        .sync_all()
        .with_context(context)?;
    std::fs::rename(&temporary, path).with_context(context)?;
    Ok(())
}
