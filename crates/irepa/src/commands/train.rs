//! `runner train`.

use std::env;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use anyhow::anyhow;
use encoders::Registry;
use report::results::Status;
use sweep::config_file;
use sweep::ranks::{self, Launch, Ranks};
use sweep::{InitialWeights, TrainOptions};
use tch::Device;
use terminal::interrupts::{self, INTERRUPTED_CODE};
use terminal::{errln, outln};
use torch_ext::distributed::World;
use training::{checkpoint, read_tensors};

use crate::cli::TrainArgs;
use crate::failure::Failure;

pub fn run(arguments: &TrainArgs) -> Result<ExitCode, Failure> {
    let devices = arguments.devices.as_deref().map(ranks::devices);
    let devices = devices.transpose().map_err(Failure::usage)?;
    let processes = arguments.processes.map(NonZeroUsize::get);
    let count = devices.as_ref().map(Vec::len).or(processes).unwrap_or(1);
    let world = World::from_env().map_err(Failure::usage)?;
    match world.filter(|world| world.size > 1) {
        Some(world) if processes.is_some() && !arguments.launched => Err(Failure::usage(anyhow!(
            "--processes: {} has started the processes already; leave it out",
            world.launcher
        ))),
        None if count > 1 => launch(count),
        world => {
            if arguments.launched {
                interrupts::watch_input()?;
            }
            super::arguments::as_rank(world, |ranks| train(arguments, devices, ranks))
        }
    }
}

/// Starts processes with the same arguments, which share the threads of this one.
fn launch(count: usize) -> Result<ExitCode, Failure> {
    let code = ranks::launch(&Launch {
        size: count,
        threads: usize::try_from(tch::get_num_threads()).unwrap_or(1) / count,
        command: &|| {
            let mut command = Command::new(env::current_exe()?);
            command.args(env::args_os().skip(1)).arg("--launched");
            Ok(command)
        },
        interrupted: interrupts::watch_interrupts()?,
    });
    code.map(ExitCode::from).map_err(Failure::usage)
}

fn train(
    arguments: &TrainArgs,
    devices: Option<Vec<Device>>,
    ranks: Option<&Arc<Ranks>>,
) -> Result<ExitCode, Failure> {
    let config = config_file::load(&arguments.config, &arguments.settings)?;
    let name = arguments.config.file_stem().unwrap_or_default();
    let folder = arguments
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from("runs").join(name));
    let is_first = ranks.is_none_or(|ranks| ranks.is_first());
    if is_first {
        refuse_to_overwrite(&folder, arguments.resume)?;
    }
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
        devices,
        ranks: ranks.cloned(),
    };
    // If another process has started this one, it says that all are interrupted.
    let interrupted = interrupts::watch(is_first && !arguments.launched)?;
    let registry = Registry::of_project(Some(&arguments.config));
    let Some(result) = sweep::train(&options, registry, interrupted)? else {
        if is_first {
            errln!("interrupted: run the same command with --resume to continue");
        }
        return Ok(ExitCode::from(INTERRUPTED_CODE));
    };
    match result.status {
        Status::Done if is_first => outln!("{}", options.folder.display()),
        Status::Done => {}
        _ => {
            outln!("{}", options.folder.display());
            return Err(Failure::from(anyhow!(result.reason)));
        }
    }
    Ok(ExitCode::SUCCESS)
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
