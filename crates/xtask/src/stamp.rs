//! Records the state of an installation in a small text file in `.venv`.
//!
//! The file is written when an installation starts and again when it is complete. It distinguishes an interrupted
//! installation from a usable one, and both from a `.venv` that something else created.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const FILE: &str = "libtorch-setup";

/// How much of PyTorch's wheel is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// The wheel and the two CUDA libraries that its CPU library links to. Enough for Rust on a CPU.
    Lean,
    /// The wheel with all its dependencies. Supports CUDA, and `import torch` in Python.
    Full,
}

/// The state of an installation.
#[derive(Clone, Debug, PartialEq)]
pub struct Stamp {
    pub complete: bool,
    /// Version of the `torch` wheel.
    pub torch: String,
    pub mode: Mode,
    /// Whether the user chose this mode. If so, a driver that is found later does not change it.
    pub requested: bool,
    /// The wheel's `torch` folder, relative to `.venv`.
    pub folder: PathBuf,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lean => "lean",
            Self::Full => "full",
        })
    }
}

impl Stamp {
    /// Reads the stamp in `venv`. `None` if it is missing or invalid, as in a `.venv` that the set-up did not create.
    pub fn read(venv: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(venv.join(FILE)).ok()?)
    }

    /// Replaces the stamp in `venv` atomically.
    pub fn write(&self, venv: &Path) -> io::Result<()> {
        let new = venv.join(format!("{FILE}.new"));
        fs::write(&new, self.to_text())?;
        fs::rename(new, venv.join(FILE))
    }

    fn to_text(&self) -> String {
        format!(
            "# Written by `cargo xtask setup`.\nstate {}\ntorch {}\nmode {}\nchoice {}\nfolder {}\n",
            if self.complete { "complete" } else { "started" },
            self.torch,
            self.mode,
            if self.requested { "asked" } else { "found" },
            self.folder.display(),
        )
    }

    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            text.lines()
                .filter_map(|line| line.split_once(' '))
                .find(|(name, _)| *name == key)
                .map(|(_, value)| value)
        };
        Some(Self {
            complete: match value("state")? {
                "complete" => true,
                "started" => false,
                _ => return None,
            },
            torch: value("torch")?.to_owned(),
            mode: match value("mode")? {
                "lean" => Mode::Lean,
                "full" => Mode::Full,
                _ => return None,
            },
            requested: value("choice")? == "asked",
            folder: PathBuf::from(value("folder")?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> Stamp {
        Stamp {
            complete: true,
            torch: "2.11.0".to_owned(),
            mode: Mode::Lean,
            requested: false,
            folder: "lib/python3.11/site-packages/torch".into(),
        }
    }

    #[test]
    fn a_stamp_is_read_back_unchanged() {
        let venv = tempfile::tempdir().unwrap();
        for (complete, mode, requested) in [
            (true, Mode::Lean, false),
            (false, Mode::Full, true),
            (true, Mode::Full, false),
        ] {
            let written = Stamp {
                complete,
                mode,
                requested,
                ..stamp()
            };
            written.write(venv.path()).unwrap();
            assert_eq!(Stamp::read(venv.path()), Some(written));
        }
    }

    #[test]
    fn a_folder_name_with_a_space_is_read_back_unchanged() {
        let spaced = Stamp {
            folder: "lib/my python/torch".into(),
            ..stamp()
        };
        assert_eq!(Stamp::parse(&spaced.to_text()), Some(spaced));
    }

    #[test]
    fn a_truncated_stamp_is_invalid() {
        let text = stamp().to_text();
        for lines in 0..text.lines().count() {
            let cut: Vec<&str> = text.lines().take(lines).collect();
            assert_eq!(Stamp::parse(&cut.join("\n")), None, "{lines} lines");
        }
    }

    #[test]
    fn a_foreign_venv_has_no_stamp() {
        let venv = tempfile::tempdir().unwrap();
        fs::write(venv.path().join("pyvenv.cfg"), "home = /usr/bin\n").unwrap();
        assert_eq!(Stamp::read(venv.path()), None);
    }

    #[test]
    fn full_is_larger_than_lean() {
        assert!(Mode::Full > Mode::Lean);
    }
}
