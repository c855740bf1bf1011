//! `runner sweep`.

use std::process::ExitCode;

use sweep::{self, Options};
use terminal::{errln, outln};

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
    };
    let outcome = sweep::run(
        &options,
        super::encoder_files::registry_for(Some(&arguments.experiment)),
        terminal::interrupts::watch_interrupts()?,
    )?;
    if arguments.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    let stale = match outcome.stale {
        0 => String::new(),
        count => format!(", {count} stale"),
    };
    outln!(
        "{} done, {} failed, {} skipped{stale}",
        outcome.done,
        outcome.failed.len(),
        outcome.skipped
    );
    for (cell, reason) in &outcome.failed {
        outln!("failed: {cell}: {reason}");
    }
    outln!("{}", outcome.folder.join("results.csv").display());
    outln!("{}", outcome.folder.join("report.html").display());
    Ok(if outcome.interrupted {
        errln!("interrupted: run the same command again to resume");
        ExitCode::from(terminal::interrupts::INTERRUPTED_CODE)
    } else if let Some(reason) = &outcome.idle {
        errln!("error: {reason}");
        ExitCode::from(1)
    } else if outcome.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
