//! `runner prepare`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::anyhow;
use encoders::Registry;
use sweep::config_file;
use sweep::prepare::{self, FeatureOptions, LatentOptions, PrepareError};
use terminal::{errln, outln};
use training::{Config, TrainError};

use crate::cli::{PrepareFeaturesArgs, PrepareLatentsArgs};
use crate::failure::Failure;

/// Default folder of feature caches.
const FEATURES: &str = "features";
/// Default folder of moments.
const LATENTS: &str = "latents";

pub fn features(arguments: &PrepareFeaturesArgs) -> Result<ExitCode, Failure> {
    let config = config_file::load(&arguments.config, &arguments.settings)?;
    let device = super::arguments::device(&arguments.device)?;
    let registry = encoders::Registry::of_project(Some(&arguments.config));
    let encoders = encoders(arguments, &config, &registry)?;
    let named =
        Some(config.data.token_cache.to_path_buf()).filter(|path| !path.as_os_str().is_empty());
    let options = FeatureOptions {
        out: arguments
            .out
            .clone()
            .or(named)
            .unwrap_or_else(|| PathBuf::from(FEATURES)),
        config,
        encoders,
        stored: arguments.dtype,
        shard_bytes: arguments.shard_mib << 20,
    };
    let interrupted = terminal::interrupts::watch_interrupts()?;
    let outcome = prepare::features(&options, registry, device, interrupted)
        .map_err(|error| failure(error, &arguments.config))?;
    for folder in &outcome.made {
        outln!("{}", folder.display());
    }
    for (encoder, reason) in &outcome.failed {
        outln!("failed: {encoder}: {reason}");
    }
    if outcome.interrupted {
        errln!("interrupted: run the same command again to resume");
        return Ok(ExitCode::from(terminal::interrupts::INTERRUPTED_CODE));
    }
    if !outcome.made.is_empty() {
        errln!(
            "training reads them with --set data.token_cache={}",
            options.out.display()
        );
    }
    Ok(ExitCode::from(u8::from(!outcome.failed.is_empty())))
}

pub fn latents(arguments: &PrepareLatentsArgs) -> Result<ExitCode, Failure> {
    let config = config_file::load(&arguments.config, &arguments.settings)?;
    let device = super::arguments::device(&arguments.device)?;
    let named =
        Some(config.data.latent_cache.to_path_buf()).filter(|path| !path.as_os_str().is_empty());
    let options = LatentOptions {
        out: arguments
            .out
            .clone()
            .or(named)
            .unwrap_or_else(|| PathBuf::from(LATENTS)),
        config,
        stored: arguments.dtype,
        shard_bytes: arguments.shard_mib << 20,
    };
    let is_complete = prepare::latents(&options, device, terminal::interrupts::watch_interrupts()?)
        .map_err(|error| failure(error, &arguments.config))?;
    if !is_complete {
        errln!("interrupted: run the same command again to resume");
        return Ok(ExitCode::from(terminal::interrupts::INTERRUPTED_CODE));
    }
    outln!("{}", options.out.display());
    errln!(
        "training reads them with --set data.latent_cache={}",
        options.out.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Converts an error; a missing data set or autoencoder is an error of the configuration, with exit code 2.
fn failure(error: PrepareError, config: &Path) -> Failure {
    let config = config.display();
    match error {
        PrepareError::Data(error) => Failure::usage(anyhow!("{config}: `data.path`: {error}")),
        PrepareError::NoLatents(_) | PrepareError::Train(TrainError::NoAutoencoder(_)) => {
            Failure::usage(anyhow!("{config}: {error}"))
        }
        other => Failure::from(other),
    }
}

/// The requested encoders; of a named set, only the installed ones.
fn encoders(
    arguments: &PrepareFeaturesArgs,
    config: &Config,
    registry: &Registry,
) -> Result<Vec<String>, Failure> {
    let requested = match arguments.encoders.is_empty() {
        true => config.alignment.encoders(),
        false => arguments.encoders.clone(),
    };
    let names = super::arguments::installed_encoders(&requested, config.data.resolution, registry)?;
    if names.is_empty() {
        return Err(Failure::usage(anyhow!(
            "{}: `alignment.encoder` names no installed encoder; name some with --encoder \
             (`runner encoders list` shows them)",
            arguments.config.display()
        )));
    }
    Ok(names)
}
