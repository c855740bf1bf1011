//! `cargo run -p runner -- COMMAND`: the program `irepa`, from a clone in which nothing is set up.
//!
//! `irepa` cannot be built before libtorch is there, and cargo builds a program's dependencies before any code of this
//! project runs. So this program, which depends on no libtorch, comes first: it makes sure of the set-up, has cargo
//! build `irepa` beside itself (same profile, same target folder), and becomes it, with the same arguments.

mod place;

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use xtask::{Environment, Request, say};

use crate::place::Place;

fn main() -> ExitCode {
    match start() {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("error: {error:#}"));
            ExitCode::from(1)
        }
    }
}

fn start() -> Result<ExitCode> {
    let root = xtask::workspace_root(env!("CARGO_MANIFEST_DIR"))?;
    let own = env::current_exe().context("cannot tell which file this program is")?;
    let place = Place::of(&own, env!("RUNNER_TARGET"))?;
    let environment = Environment::of_process(&root);
    let mut cargo = xtask::ready_cargo(&root, &environment, Request::default())?;
    // The folder decides which `.cargo/config.toml` holds.
    cargo
        .current_dir(&root)
        .arg("build")
        .args(place.arguments());
    let status = cargo
        .status()
        .with_context(|| format!("cannot run {}", cargo.get_program().display()))?;
    if !status.success() {
        bail!("the program could not be built: see cargo's messages above");
    }
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| "runner".into());
    become_program(&place.program(), name, arguments)
}

/// Puts `program` in the place of this process, so that signals and the exit code are its own. Its name stays the one
/// that was typed, which its help repeats.
#[cfg(unix)]
fn become_program(
    program: &Path,
    name: OsString,
    arguments: impl Iterator<Item = OsString>,
) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let error = Command::new(program).arg0(name).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

#[cfg(not(unix))]
fn become_program(
    program: &Path,
    _name: OsString,
    arguments: impl Iterator<Item = OsString>,
) -> Result<ExitCode> {
    xtask::hand_over(Command::new(program).args(arguments))
}
