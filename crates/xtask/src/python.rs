//! Finds a Python that PyTorch has wheels for, and checks that it has the modules that the set-up needs.

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::machine::{Platform, Tool};

/// Oldest and newest minor version of CPython 3 for which PyTorch 2.11 has wheels.
const OLDEST: u32 = 10;
const NEWEST: u32 = 14;

/// Names of Python programs, in the order in which they are tried.
const NAMES: [&str; 7] = [
    "python3",
    "python3.13",
    "python3.12",
    "python3.11",
    "python3.10",
    "python3.14",
    "python",
];

/// A script that prints `key=value` lines. Its argument is the project folder. It also runs in Python 2, so that an old
/// version is reported instead of failing.
const PROBE: &str = r"
import os, platform, sys, tempfile
print('version=' + '.'.join(str(n) for n in sys.version_info[:3]))
print('implementation=' + platform.python_implementation())
try:
    import ensurepip, venv
    print('venv=yes')
except ImportError:
    print('venv=no')
try:
    import shutil
    project, temporary = sys.argv[1], tempfile.gettempdir()
    print('free=%d' % shutil.disk_usage(project).free)
    print('free_temporary=%d' % shutil.disk_usage(temporary).free)
    print('same_disk=' + ('yes' if os.stat(project).st_dev == os.stat(temporary).st_dev else 'no'))
    print('temporary=' + temporary)
except Exception:
    pass
";

/// A usable Python.
#[derive(Clone, Debug, PartialEq)]
pub struct Python {
    pub command: OsString,
    pub version: String,
    /// Free space as reported by that Python; `None` if it could not be determined.
    pub disk: Option<Disk>,
}

/// Free space, in bytes, of the folders that the set-up writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    /// Free space of the project folder.
    pub project: u64,
    /// Free space of `temporary_folder`.
    pub temporary: u64,
    /// The folder that pip downloads to.
    pub temporary_folder: String,
    /// Whether both folders are on the same disk.
    pub same_disk: bool,
}

/// Why a Python that was found cannot be used.
#[derive(Debug, PartialEq)]
enum Flaw {
    /// There are no wheels for this implementation or version.
    Version(String),
    /// The Python of this version lacks venv or ensurepip.
    NoVenv(String),
    NotPython,
}

impl Python {
    /// Finds the first suitable Python: the program that `PYTHON` names if it is set, otherwise one in `PATH`. Free space
    /// is measured at `root`.
    pub fn find(root: &Path, platform: Platform) -> Result<Self> {
        if let Some(named) = env::var_os("PYTHON").filter(|named| !named.is_empty()) {
            return match probe(&named, root) {
                Some(Ok(python)) => Ok(python),
                Some(Err(flaw)) => {
                    bail!("PYTHON={} {}", named.display(), explain(&flaw, platform))
                }
                None => bail!(
                    "PYTHON={} cannot be run: unset it, or set it to a Python 3.{OLDEST} to 3.{NEWEST}",
                    named.display()
                ),
            };
        }
        let mut flaws = Vec::new();
        for name in NAMES {
            match probe(name.as_ref(), root) {
                Some(Ok(python)) => return Ok(python),
                Some(Err(flaw)) => flaws.push((name, flaw)),
                None => {}
            }
        }
        // A Python of a supported version that lacks a module is easier to fix than one that is too old.
        flaws.sort_by_key(|(_, flaw)| !matches!(flaw, Flaw::NoVenv(_)));
        match flaws.first() {
            Some((name, flaw)) => bail!("`{name}` {}", explain(flaw, platform)),
            None => bail!(
                "no Python found (searched PATH for {}). The set-up needs Python 3.{OLDEST} to 3.{NEWEST} to install \
                 libtorch: {}",
                NAMES.join(", "),
                platform.install_hint(Tool::Python)
            ),
        }
    }
}

/// Runs the probe with `command`. Returns `None` if `command` cannot be run or fails.
fn probe(command: &std::ffi::OsStr, root: &Path) -> Option<Result<Python, Flaw>> {
    let output = Command::new(command)
        .args(["-c", PROBE])
        .arg(root)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let answer = String::from_utf8_lossy(&output.stdout);
    Some(match read_answer(&answer) {
        Ok((version, disk)) => Ok(Python {
            command: command.to_owned(),
            version,
            disk,
        }),
        Err(flaw) => Err(flaw),
    })
}

fn read_answer(answer: &str) -> Result<(String, Option<Disk>), Flaw> {
    let value = |key: &str| {
        answer
            .lines()
            .filter_map(|line| line.split_once('='))
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value.trim())
    };
    let version = value("version").ok_or(Flaw::NotPython)?.to_owned();
    let implementation = value("implementation").ok_or(Flaw::NotPython)?;
    if implementation != "CPython" {
        return Err(Flaw::Version(format!("{implementation} {version}")));
    }
    if !has_wheels(&version) {
        return Err(Flaw::Version(format!("Python {version}")));
    }
    if value("venv") != Some("yes") {
        return Err(Flaw::NoVenv(version));
    }
    let bytes = |key| value(key)?.parse::<u64>().ok();
    let disk = || {
        Some(Disk {
            project: bytes("free")?,
            temporary: bytes("free_temporary")?,
            temporary_folder: value("temporary")?.to_owned(),
            same_disk: value("same_disk")? == "yes",
        })
    };
    Ok((version, disk()))
}

fn has_wheels(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(3)), Some(Ok(minor))) => (OLDEST..=NEWEST).contains(&minor),
        _ => false,
    }
}

/// The predicate of a sentence whose subject is the command.
fn explain(flaw: &Flaw, platform: Platform) -> String {
    match flaw {
        Flaw::Version(found) => format!(
            "is {found}, but PyTorch 2.11 has wheels only for CPython 3.{OLDEST} to 3.{NEWEST}. Set PYTHON to one of \
             these versions, or install one: {}",
            platform.install_hint(Tool::Python)
        ),
        Flaw::NoVenv(version) => format!(
            "is Python {version} without venv or ensurepip, which the set-up needs to create .venv. To install them: {}",
            platform.install_hint(Tool::Venv)
        ),
        Flaw::NotPython => format!(
            "does not behave like Python. Set PYTHON to a Python 3.{OLDEST} to 3.{NEWEST}, or install one: {}",
            platform.install_hint(Tool::Python)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "version=3.11.7\nimplementation=CPython\nvenv=yes\nfree=1000\nfree_temporary=10\n\
                          same_disk=no\ntemporary=/tmp\n";

    #[test]
    fn a_complete_answer_is_read() {
        let (version, disk) = read_answer(ANSWER).unwrap();
        assert_eq!(version, "3.11.7");
        let disk = disk.unwrap();
        assert_eq!(
            (disk.project, disk.temporary, disk.same_disk),
            (1000, 10, false)
        );
        assert_eq!(disk.temporary_folder, "/tmp");
    }

    #[test]
    fn free_space_is_optional_in_an_answer() {
        let answer = "version=3.12.1\nimplementation=CPython\nvenv=yes\n";
        assert_eq!(read_answer(answer), Ok(("3.12.1".to_owned(), None)));
    }

    #[test]
    fn versions_without_wheels_are_named() {
        for version in ["2.7.18", "3.9.18", "3.15.0"] {
            let answer = ANSWER.replace("3.11.7", version);
            let flaw = read_answer(&answer).unwrap_err();
            assert_eq!(flaw, Flaw::Version(format!("Python {version}")));
            let text = explain(&flaw, Platform::Debian);
            assert!(text.contains("3.10 to 3.14"), "{text}");
        }
        let pypy = ANSWER.replace("CPython", "PyPy");
        assert!(matches!(read_answer(&pypy), Err(Flaw::Version(_))));
    }

    #[test]
    fn the_error_for_a_python_without_ensurepip_names_the_package() {
        let flaw = read_answer(&ANSWER.replace("venv=yes", "venv=no")).unwrap_err();
        let text = explain(&flaw, Platform::Debian);
        assert!(text.contains("apt-get install python3-venv"), "{text}");
    }

    #[test]
    fn another_program_called_python_is_refused() {
        assert_eq!(read_answer("hello\n"), Err(Flaw::NotPython));
    }
}
