//! `runner sweep`.

use std::env;
use std::num::NonZeroUsize;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use encoders::Registry;
use sweep::ranks::{self, Ranks};
use sweep::{self, Options, Workers};
use terminal::{errln, interrupts, outln};
use torch_ext::distributed::World;

use crate::cli::SweepArgs;
use crate::failure::Failure;

pub fn run(arguments: &SweepArgs) -> Result<ExitCode, Failure> {
    // A worker has the environment of the process that started it.
    let world = match &arguments.worker {
        None if !arguments.dry_run => World::from_env().map_err(Failure::usage)?,
        _ => None,
    };
    super::arguments::as_rank(world, |ranks| sweep(arguments, ranks))
}

fn sweep(arguments: &SweepArgs, ranks: Option<&Arc<Ranks>>) -> Result<ExitCode, Failure> {
    let devices = arguments.devices.as_deref().map(ranks::devices);
    let devices = devices.transpose().map_err(Failure::usage)?;
    let options = Options {
        experiment: arguments.experiment.clone(),
        out: arguments.out.clone(),
        device: arguments
            .worker
            .as_ref()
            .unwrap_or(&arguments.device)
            .clone(),
        only: arguments.only.clone(),
        settings: arguments.settings.clone(),
        dry_run: arguments.dry_run,
        fresh: arguments.fresh,
        shard: arguments.shard,
        memory_limit: arguments
            .memory_limit
            .map(|mib| mib.saturating_mul(1 << 20)),
        is_worker: arguments.worker.is_some(),
        ranks: ranks.cloned(),
    };
    let workers = Workers {
        count: arguments.workers.map(NonZeroUsize::get),
        devices: match &arguments.worker {
            None => devices.as_deref().unwrap_or_default(),
            Some(_) => &[],
        },
        command: &|device| {
            let mut command = Command::new(env::current_exe()?);
            command
                .args(env::args_os().skip(1))
                .args(["--worker", device]);
            Ok(command)
        },
    };
    let is_first = ranks.is_none_or(|ranks| ranks.is_first());
    let interrupted = interrupts::watch(is_first && !options.is_worker)?;
    let registry = Registry::of_project(Some(&arguments.experiment));
    let outcome = sweep::run(&options, workers, registry, interrupted)?;
    if arguments.dry_run || options.is_worker {
        return Ok(ExitCode::SUCCESS);
    }
    if is_first {
        outln!("{outcome}");
        for (cell, reason) in &outcome.failed {
            outln!("failed: {cell}: {reason}");
        }
        outln!("{}", outcome.folder.join("results.csv").display());
        outln!("{}", outcome.folder.join("report.html").display());
    }
    Ok(if outcome.interrupted {
        if is_first {
            errln!("interrupted: run the same command again to resume");
        }
        ExitCode::from(interrupts::INTERRUPTED_CODE)
    } else if let Some(reason) = outcome.idle.as_ref().filter(|_| is_first) {
        errln!("error: {reason}");
        ExitCode::from(1)
    } else if outcome.failed.is_empty() || !is_first {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
