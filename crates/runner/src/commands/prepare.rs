use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use encoders::Registry;
use runner::config_file;
use runner::prepare::{self, FeatureOptions, PrepareError};
use training::Config;

use crate::cli::PrepareFeaturesArgs;
use crate::failure::Failure;

/// Where caches are made if nothing says otherwise.
const FOLDER: &str = "features";

pub fn features(arguments: &PrepareFeaturesArgs) -> Result<ExitCode, Failure> {
    let config = config_file::load(&arguments.config, &arguments.settings)?;
    let device = super::device(&arguments.device)?;
    let registry = super::registry();
    let encoders = encoders(arguments, &config, &registry)?;
    let named = Some(config.data.token_cache.clone()).filter(|path| !path.as_os_str().is_empty());
    let options = FeatureOptions {
        out: arguments
            .out
            .clone()
            .or(named)
            .unwrap_or_else(|| PathBuf::from(FOLDER)),
        config,
        encoders,
        stored: arguments.dtype,
        shard_bytes: arguments.shard_mib << 20,
    };
    let interrupted = super::watch_interrupts()?;
    let outcome =
        prepare::features(&options, registry, device, interrupted).map_err(
            |error| match error {
                PrepareError::Data(error) => Failure::usage(anyhow!(
                    "{}: `data.path`: {error}",
                    arguments.config.display()
                )),
                other => Failure::from(other),
            },
        )?;
    for folder in &outcome.made {
        println!("{}", folder.display());
    }
    for (encoder, reason) in &outcome.failed {
        println!("failed: {encoder}: {reason}");
    }
    if outcome.interrupted {
        eprintln!("interrupted: the same command continues");
        return Ok(ExitCode::from(130));
    }
    if !outcome.made.is_empty() {
        eprintln!(
            "training reads them with --set data.token_cache={}",
            options.out.display()
        );
    }
    Ok(ExitCode::from(u8::from(!outcome.failed.is_empty())))
}

/// The encoders that were asked for. Of a named set, those that are here.
fn encoders(
    arguments: &PrepareFeaturesArgs,
    config: &Config,
    registry: &Registry,
) -> Result<Vec<String>, Failure> {
    let asked = match arguments.encoders.is_empty() {
        true => config.alignment.encoders(),
        false => arguments.encoders.clone(),
    };
    let names = super::encoders_here(&asked, config.data.resolution, registry)?;
    if names.is_empty() {
        return Err(Failure::usage(anyhow!(
            "{}: `alignment.encoder` names no encoder that is here; name some with --encoder \
             (`runner encoders list` shows them)",
            arguments.config.display()
        )));
    }
    Ok(names)
}
