//! Finds a Python that PyTorch has wheels for, and asks it what it can do.

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::machine::{Platform, Tool};

/// PyTorch 2.11 has wheels for CPython of these minor versions.
const OLDEST: u32 = 10;
const NEWEST: u32 = 14;

/// Tried in this order after `python3`.
const NAMES: [&str; 7] = [
    "python3",
    "python3.13",
    "python3.12",
    "python3.11",
    "python3.10",
    "python3.14",
    "python",
];

/// Answers in `key=value` lines for the folder that is its argument. Written for Python 2 too, so that an old one is named
/// instead of failing.
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
    here, temporary = sys.argv[1], tempfile.gettempdir()
    print('free=%d' % shutil.disk_usage(here).free)
    print('free_temporary=%d' % shutil.disk_usage(temporary).free)
    print('same_disk=' + ('yes' if os.stat(here).st_dev == os.stat(temporary).st_dev else 'no'))
    print('temporary=' + temporary)
except Exception:
    pass
";

/// A usable Python.
#[derive(Clone, Debug, PartialEq)]
pub struct Python {
    pub command: OsString,
    pub version: String,
    /// Free space as that Python sees it; `None` when it could not tell.
    pub disk: Option<Disk>,
}

/// Free space, in bytes, where the set-up writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    pub here: u64,
    pub temporary: u64,
    /// The folder that pip downloads to.
    pub temporary_folder: String,
    pub same: bool,
}

/// What is wrong with a Python that was found.
#[derive(Debug, PartialEq)]
enum Flaw {
    Version(String),
    NoVenv(String),
    NotPython,
}

impl Python {
    /// The first suitable Python: the one `PYTHON` names where it is set, else one in `PATH`. Free space is
    /// measured at `root`.
    pub fn find(root: &Path, platform: Platform) -> Result<Self> {
        if let Some(named) = env::var_os("PYTHON").filter(|named| !named.is_empty()) {
            return match probe(&named, root) {
                Some(Ok(python)) => Ok(python),
                Some(Err(flaw)) => {
                    bail!("PYTHON={} {}", named.display(), sentence(&flaw, platform))
                }
                None => bail!(
                    "PYTHON={} cannot be run: unset it or name a Python 3.{OLDEST} to 3.{NEWEST}",
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
        // A Python of the right version that lacks a module is nearer to working than one that is too old.
        flaws.sort_by_key(|(_, flaw)| !matches!(flaw, Flaw::NoVenv(_)));
        match flaws.first() {
            Some((name, flaw)) => bail!("`{name}` {}", sentence(flaw, platform)),
            None => bail!(
                "there is no Python (looked for {} in PATH). The set-up needs Python 3.{OLDEST} to 3.{NEWEST} to \
                 install libtorch: {}",
                NAMES.join(", "),
                platform.way_to(Tool::Python)
            ),
        }
    }
}

/// `None` when `command` does not run, or is not Python at all.
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
            here: bytes("free")?,
            temporary: bytes("free_temporary")?,
            temporary_folder: value("temporary")?.to_owned(),
            same: value("same_disk")? == "yes",
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

fn sentence(flaw: &Flaw, platform: Platform) -> String {
    match flaw {
        Flaw::Version(found) => format!(
            "is {found}, and PyTorch 2.11 has wheels for CPython 3.{OLDEST} to 3.{NEWEST} only. Set PYTHON to one of \
             those, or get one: {}",
            platform.way_to(Tool::Python)
        ),
        Flaw::NoVenv(version) => format!(
            "is Python {version} without venv or ensurepip, which the set-up needs to make .venv. To get them: {}",
            platform.way_to(Tool::Venv)
        ),
        Flaw::NotPython => format!(
            "does not answer as Python does. Set PYTHON to a Python 3.{OLDEST} to 3.{NEWEST}, or get one: {}",
            platform.way_to(Tool::Python)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "version=3.11.7\nimplementation=CPython\nvenv=yes\nfree=1000\nfree_temporary=10\n\
                          same_disk=no\ntemporary=/tmp\n";

    #[test]
    fn an_answer_is_read_whole() {
        let (version, disk) = read_answer(ANSWER).unwrap();
        assert_eq!(version, "3.11.7");
        let disk = disk.unwrap();
        assert_eq!((disk.here, disk.temporary, disk.same), (1000, 10, false));
        assert_eq!(disk.temporary_folder, "/tmp");
    }

    #[test]
    fn an_answer_without_free_space_is_enough() {
        let answer = "version=3.12.1\nimplementation=CPython\nvenv=yes\n";
        assert_eq!(read_answer(answer), Ok(("3.12.1".to_owned(), None)));
    }

    #[test]
    fn versions_without_wheels_are_named() {
        for version in ["2.7.18", "3.9.18", "3.15.0"] {
            let answer = ANSWER.replace("3.11.7", version);
            let flaw = read_answer(&answer).unwrap_err();
            assert_eq!(flaw, Flaw::Version(format!("Python {version}")));
            let text = sentence(&flaw, Platform::Debian);
            assert!(text.contains("3.10 to 3.14"), "{text}");
        }
        let pypy = ANSWER.replace("CPython", "PyPy");
        assert!(matches!(read_answer(&pypy), Err(Flaw::Version(_))));
    }

    #[test]
    fn a_python_without_ensurepip_names_the_package() {
        let flaw = read_answer(&ANSWER.replace("venv=yes", "venv=no")).unwrap_err();
        let text = sentence(&flaw, Platform::Debian);
        assert!(text.contains("apt-get install python3-venv"), "{text}");
    }

    #[test]
    fn something_else_called_python_is_no_python() {
        assert_eq!(read_answer("hello\n"), Err(Flaw::NotPython));
    }
}
