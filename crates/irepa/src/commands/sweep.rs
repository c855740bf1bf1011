//! `runner sweep`.

use std::env;
use std::num::NonZeroUsize;
use std::process::{Command, ExitCode};

use sweep::{self, Options, Workers};
use terminal::{errln, interrupts, outln};

use crate::cli::SweepArgs;
use crate::failure::Failure;

pub fn run(arguments: &SweepArgs) -> Result<ExitCode, Failure> {
    let options = Options {
        experiment: arguments.experiment.clone(),
        out: arguments.out.clone(),
        device: arguments.device.clone(),
        only: arguments.only.clone(),
        settings: arguments.settings.clone(),
        dry_run: arguments.dry_run,
        fresh: arguments.fresh,
        shard: arguments.shard,
        memory_limit: arguments
            .memory_limit
            .map(|mib| mib.saturating_mul(1 << 20)),
        is_worker: arguments.worker,
    };
    let workers = Workers {
        count: arguments.workers.map(NonZeroUsize::get),
        command: &|| {
            let mut command = Command::new(env::current_exe()?);
            command.args(env::args_os().skip(1)).arg("--worker");
            Ok(command)
        },
    };
    let interrupted = match arguments.worker {
        true => interrupts::watch_interrupts_silently()?,
        false => interrupts::watch_interrupts()?,
    };
    let registry = encoders::Registry::of_project(Some(&arguments.experiment));
    let outcome = sweep::run(&options, workers, registry, interrupted)?;
    if arguments.dry_run || arguments.worker {
        return Ok(ExitCode::SUCCESS);
    }
    outln!("{outcome}");
    for (cell, reason) in &outcome.failed {
        outln!("failed: {cell}: {reason}");
    }
    outln!("{}", outcome.folder.join("results.csv").display());
    outln!("{}", outcome.folder.join("report.html").display());
    Ok(if outcome.interrupted {
        errln!("interrupted: run the same command again to resume");
        ExitCode::from(interrupts::INTERRUPTED_CODE)
    } else if let Some(reason) = &outcome.idle {
        errln!("error: {reason}");
        ExitCode::from(1)
    } else if outcome.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
