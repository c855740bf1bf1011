//! `runner`: the program that trains and compares diffusion transformers with representation alignment.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cli;
mod commands;
mod failure;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use signal_hook::low_level;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command, EncodersCommand, PrepareCommand};
use failure::Failure;
use terminal::interruptible::has_abandoned_work;
use terminal::{errln, output};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Starts the program again, so not for commands that end at once.
    if !matches!(
        cli.command,
        Command::Report(_) | Command::Doctor | Command::Encoders(_)
    ) {
        torch_ext::openmp::limit_spinning();
    }
    let filter = EnvFilter::try_from_env("IREPA_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| output::Stderr)
        // Internal errors are printed to standard error, which panics if it is closed.
        .log_internal_errors(false)
        .with_ansi(use_colours())
        .without_time()
        .with_target(false)
        .init();
    if !torch_ext::device::keep_freed_memory() {
        tracing::debug!("this C library has no setting to keep freed memory");
    }
    let code = match run(cli.command) {
        Ok(code) => code,
        Err(failure) => {
            errln!("error: {failure}");
            ExitCode::from(failure.code())
        }
    };
    let write_error = output::finish();
    if has_abandoned_work() {
        // An abandoned thread may still be in libtorch, so libtorch's destructors must not run.
        low_level::exit(i32::from(terminal::interrupts::INTERRUPTED_CODE));
    }
    match write_error {
        None => code,
        Some(error) => {
            errln!("error: cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the log is coloured: only on a terminal, and not if NO_COLOR is set (<https://no-color.org>).
fn use_colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty())
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Sweep(arguments) => commands::sweep::run(&arguments),
        Command::Train(arguments) => commands::train::run(&arguments),
        Command::Sample(arguments) => commands::sample::run(&arguments),
        Command::Evaluate(arguments) => commands::evaluate::run(&arguments),
        Command::Metrics(arguments) => commands::metrics::run(&arguments),
        Command::Visualize(arguments) => commands::visualize::run(&arguments),
        Command::Encoders(EncodersCommand::List) => commands::encoders::list(),
        Command::Encoders(EncodersCommand::Inspect(arguments)) => {
            commands::encoders::inspect(&arguments)
        }
        Command::Encoders(EncodersCommand::Check(arguments)) => {
            commands::encoders::check(&arguments)
        }
        Command::Prepare(PrepareCommand::Latents(arguments)) => {
            commands::prepare::latents(&arguments)
        }
        Command::Prepare(PrepareCommand::Features(arguments)) => {
            commands::prepare::features(&arguments)
        }
        Command::Report(arguments) => commands::report::run(&arguments),
        Command::Doctor => commands::doctor::run(),
    }
}
