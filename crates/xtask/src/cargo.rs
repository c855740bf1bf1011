//! Runs cargo for the commands that need libtorch.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::libtorch::Environment;
use crate::say;
use crate::setup::{self, Request};

/// Returns the folder that contains `.cargo`, `.venv` and `.libtorch`. `package` is the folder of the calling package at
/// compile time. If cargo runs the program, its variable `CARGO_MANIFEST_DIR` takes precedence, because it stays correct
/// after the clone was moved.
///
/// # Errors
/// The package is not two folders below the workspace.
pub fn workspace_root(package: &str) -> Result<PathBuf> {
    let package =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(package), PathBuf::from);
    package
        .ancestors()
        .nth(2)
        .map(Path::to_path_buf)
        .with_context(|| format!("{} is not inside a workspace", package.display()))
}

/// Runs the set-up if needed, and returns a cargo command.
///
/// # Errors
/// The set-up fails.
pub fn ready_cargo(root: &Path, environment: &Environment, request: Request) -> Result<Command> {
    let outcome = setup::setup(root, environment, request)?;
    if outcome.is_worth_reporting() {
        say(&outcome);
    }
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    if !environment.libtorch_is_set_by_user() {
        // Cargo has set the variable from `.cargo/config.toml` and will set it again. Without it, this command equals
        // the one that a user would type, and shares its build.
        cargo.env_remove("LIBTORCH");
    }
    Ok(cargo)
}

/// Runs `command` to its end and returns its exit code.
///
/// # Errors
/// The command cannot be started.
pub fn run_to_completion(command: &mut Command) -> Result<ExitCode> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
