//! `cargo run -p runner -- COMMAND`: sets up a fresh clone, then builds and runs the program `irepa`.
//!
//! `irepa` cannot be built before libtorch is installed, and cargo builds the dependencies of a program before any code
//! of this project runs. This program therefore does not depend on libtorch. It completes the set-up, lets cargo build
//! `irepa` with the same profile in the same target folder, and replaces itself by `irepa` with the same arguments.

mod build_folder;

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use xtask::{Environment, Request, say};

use crate::build_folder::BuildFolder;

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
    let executable = env::current_exe().context("cannot determine the path of this program")?;
    let build_folder = BuildFolder::of(&executable, env!("RUNNER_TARGET"))?;
    let environment = Environment::of_process(&root);
    let mut cargo = xtask::ready_cargo(&root, &environment, Request::default())?;
    // The working directory determines which `.cargo/config.toml` applies.
    cargo
        .current_dir(&root)
        .arg("build")
        .args(build_folder.arguments());
    let status = cargo
        .status()
        .with_context(|| format!("cannot run {}", cargo.get_program().display()))?;
    if !status.success() {
        bail!("the program could not be built: see the messages of cargo above");
    }
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| "runner".into());
    let arguments: Vec<OsString> = arguments.collect();
    if xtask::embedded_are_needed(&arguments) {
        xtask::make_missing_embedded(&root);
    }
    replace_process(&build_folder.program(), name, arguments)
}

/// Replaces this process by `program`, which then receives signals and sets the exit code itself. The program keeps the
/// name that the user typed, because its help repeats that name.
#[cfg(unix)]
fn replace_process(program: &Path, name: OsString, arguments: Vec<OsString>) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let error = Command::new(program).arg0(name).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

#[cfg(not(unix))]
fn replace_process(program: &Path, _name: OsString, arguments: Vec<OsString>) -> Result<ExitCode> {
    xtask::run_to_completion(Command::new(program).args(arguments))
}
