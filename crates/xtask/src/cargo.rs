//! Cargo, as the commands that need libtorch run it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::libtorch::Environment;
use crate::say;
use crate::setup::{self, Request};

/// The folder that holds `.cargo`, `.venv` and `.libtorch`; `package` is the folder of the calling package as it was
/// compiled. Cargo names that folder again when it runs a program, which stays true after the clone was moved.
///
/// # Errors
/// The package is not two folders below a workspace.
pub fn workspace_root(package: &str) -> Result<PathBuf> {
    let package =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(package), PathBuf::from);
    package
        .ancestors()
        .nth(2)
        .map(Path::to_path_buf)
        .with_context(|| format!("{} is not inside a workspace", package.display()))
}

/// Cargo, after a set-up where one is needed.
///
/// # Errors
/// The set-up cannot be done.
pub fn ready_cargo(root: &Path, environment: &Environment, request: Request) -> Result<Command> {
    let ready = setup::setup(root, environment, request)?;
    if ready.is_news() {
        say(&ready);
    }
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    if !environment.libtorch_is_own() {
        // Cargo put it there from `.cargo/config.toml` and will again: without it the command below is the
        // very command that a user would type, and shares its build.
        cargo.env_remove("LIBTORCH");
    }
    Ok(cargo)
}

/// Runs `command` to its end and passes its exit code on.
///
/// # Errors
/// It cannot be started.
pub fn hand_over(command: &mut Command) -> Result<ExitCode> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
