//! `runner train`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::anyhow;
use report::results::Status;
use sweep::config_file;
use sweep::{self, InitialWeights, TrainOptions};
use terminal::{errln, outln};
use training::{checkpoint, read_tensors};

use crate::cli::TrainArgs;
use crate::failure::Failure;

pub fn run(arguments: &TrainArgs) -> Result<ExitCode, Failure> {
    let config = config_file::load(&arguments.config, &arguments.settings)?;
    let name = arguments.config.file_stem().unwrap_or_default();
    let folder = arguments
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from("runs").join(name));
    refuse_to_overwrite(&folder, arguments.resume)?;
    let init = match &arguments.init {
        Some(path) => Some(InitialWeights {
            path: path.clone(),
            tensors: read_tensors(path).map_err(Failure::usage)?,
            partial: arguments.partial,
        }),
        None => None,
    };
    let options = TrainOptions {
        config,
        init,
        origin: arguments.config.clone(),
        folder,
        device: arguments.device.clone(),
    };
    let result = sweep::train(
        &options,
        super::encoder_files::registry_for(Some(&arguments.config)),
        terminal::interrupts::watch_interrupts()?,
    )?;
    let Some(result) = result else {
        errln!("interrupted: run the same command with --resume to continue");
        return Ok(ExitCode::from(terminal::interrupts::INTERRUPTED_CODE));
    };
    outln!("{}", options.folder.display());
    match result.status {
        Status::Done => Ok(ExitCode::SUCCESS),
        _ => Err(Failure::from(anyhow!(result.reason))),
    }
}

/// Refuses a folder that contains a run, unless `resume`.
fn refuse_to_overwrite(folder: &Path, resume: bool) -> Result<(), Failure> {
    let found = checkpoint::list(&folder.join("checkpoints"))?.len();
    if found > 0 && !resume {
        return Err(Failure::usage(anyhow!(
            "{} already contains a run ({found} checkpoints): resume it with --resume, or choose \
             another folder with --out",
            folder.display()
        )));
    }
    Ok(())
}
