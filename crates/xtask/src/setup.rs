//! Decides what is missing for a build, and brings it.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};

use crate::install::{Venv, check_disk};
use crate::libtorch::{self, Environment, Own, TORCH_VERSION, Unfit, link_path, refusal};
use crate::machine::{Driver, Platform, check_compiler};
use crate::python::Python;
use crate::say;
use crate::stamp::{Mode, Stamp};

/// What the exporters and the comparisons with Python import, relative to the workspace.
pub const REQUIREMENTS: &str = "crates/encoders/python/requirements.txt";

/// The requirements that were installed, kept in `.venv` to see that the file has changed.
const INSTALLED_REQUIREMENTS: &str = "installed-requirements.txt";

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Request {
    /// `None` leaves it to the machine.
    pub mode: Option<Mode>,
    /// Also the packages of [`REQUIREMENTS`], for Python.
    pub python: bool,
}

/// The libtorch that a build will now find.
#[derive(Debug)]
pub enum Ready {
    /// In `.venv`.
    Installed {
        /// How much of the wheel.
        mode: Mode,
        /// How long it took, when it was installed just now.
        seconds: Option<u64>,
    },
    /// One that the user chose.
    Own {
        /// Its version, such as `2.11.0+cpu`.
        version: String,
        /// The variables or the link that lead to it.
        named_by: String,
    },
}

impl Ready {
    /// Whether a command that has something else to say should say this too.
    pub fn is_news(&self) -> bool {
        !matches!(self, Self::Installed { seconds: None, .. })
    }
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installed { mode, seconds } => {
                write!(f, "libtorch {TORCH_VERSION} ({mode}) is ready in .venv")?;
                match seconds {
                    Some(seconds) => write!(f, " after {seconds} s"),
                    None => Ok(()),
                }
            }
            Self::Own { version, named_by } => write!(f, "using libtorch {version} of {named_by}"),
        }
    }
}

/// Makes libtorch available to the build in `root`. Returns at once when it is.
///
/// # Errors
/// Something that the set-up needs is missing (Python, a C++ compiler, disk space, the network), or the user's own
/// libtorch cannot be used.
pub fn setup(root: &Path, environment: &Environment, request: Request) -> Result<Ready> {
    if let Some(own) = environment.own(root) {
        return use_own(&own, request);
    }
    let _lock = lock(root)?;
    if let Some(ready) = use_foreign_link(root, request)? {
        return Ok(ready);
    }

    let requirements = Requirements::of(root, request.python)?;
    let venv = Venv::new(root.join(".venv"));
    let stamp = Stamp::read(venv.path());
    let (mode, asked) = choose(request, stamp.as_ref(), || Driver::find().is_some());
    let usable = stamp.clone().filter(|stamp| is_usable(stamp, &venv));

    if let Some(present) = &usable
        && present.mode >= mode
        && requirements.are_installed(&venv)
    {
        if present.mode > mode {
            say(
                "the full installation holds all of the lean one; to get its space back, remove .venv first",
            );
        } else if asked && !present.asked {
            let asked = Stamp {
                asked,
                ..present.clone()
            };
            venv.stamp(&asked)?;
        }
        link(root, &present.folder)?;
        return Ok(Ready::Installed {
            mode: present.mode,
            seconds: None,
        });
    }
    let start = Instant::now();
    check_is_ours(venv.path(), stamp.as_ref())?;
    let wanted = Stamp {
        complete: false,
        torch: TORCH_VERSION.to_owned(),
        mode,
        asked,
        folder: stamp.map(|stamp| stamp.folder).unwrap_or_default(),
    };
    let folder = install(root, &venv, usable.as_ref(), &wanted, &requirements).with_context(|| {
        format!(
            "cannot install libtorch {TORCH_VERSION} ({mode}) into .venv (LIBTORCH can name one of your own instead)"
        )
    })?;
    link(root, &folder)?;
    Ok(Ready::Installed {
        mode,
        seconds: Some(start.elapsed().as_secs()),
    })
}

/// The mode to end with, and whether it was asked for. An installation never shrinks by itself: what is there and
/// larger stays, and a lean one that was asked for stays lean although a driver is found.
fn choose(request: Request, stamp: Option<&Stamp>, driver: impl FnOnce() -> bool) -> (Mode, bool) {
    if let Some(mode) = request.mode {
        return (mode, true);
    }
    match stamp.filter(|stamp| stamp.complete) {
        Some(stamp) if stamp.asked || stamp.mode == Mode::Full => (stamp.mode, stamp.asked),
        _ if driver() => (Mode::Full, false),
        _ => (Mode::Lean, false),
    }
}

fn is_usable(stamp: &Stamp, venv: &Venv) -> bool {
    let torch = venv.path().join(&stamp.folder);
    stamp.complete && stamp.torch == TORCH_VERSION && libtorch::check(&torch, &torch).is_ok()
}

/// Installs what `wanted` says, on top of `usable` where there is one. Returns the `torch` folder in `venv`.
fn install(
    root: &Path,
    venv: &Venv,
    usable: Option<&Stamp>,
    wanted: &Stamp,
    requirements: &Requirements,
) -> Result<PathBuf> {
    if cfg!(windows) {
        bail!(
            "the set-up runs on Linux and macOS. On Windows use WSL 2, or set LIBTORCH to a libtorch {TORCH_VERSION} \
             of your own"
        );
    }
    let platform = Platform::of_machine();
    check_compiler(platform)?;
    let python = Python::find(root, platform)?;

    let mode = wanted.mode;
    let extended = usable.filter(|_| venv.works());
    let size = match extended {
        Some(present) => mode.size().beyond(present.mode.size()),
        None => mode.size(),
    };
    let packages = match requirements.file() {
        Some(_) => format!(" and the packages of {REQUIREMENTS}"),
        None => String::new(),
    };
    say(format_args!(
        "Installing libtorch {TORCH_VERSION} ({mode}){packages} into .venv with Python {}: {size}",
        python.version
    ));
    if mode == Mode::Full
        && let Some(warning) = Driver::find().and_then(|driver| driver.warning())
    {
        say(&warning);
    }
    if let Some(disk) = &python.disk {
        check_disk(disk, size, root)?;
    }

    match extended {
        Some(_) => venv.stamp(wanted)?,
        None => venv.create(&python, wanted)?,
    }
    venv.install(mode, requirements.file())?;
    let folder = venv.verify()?;
    requirements.remember(venv)?;
    venv.stamp(&Stamp {
        complete: true,
        folder: folder.clone(),
        ..wanted.clone()
    })?;
    Ok(folder)
}

/// Refuses to touch a `.venv` that was not made here.
fn check_is_ours(venv: &Path, stamp: Option<&Stamp>) -> Result<()> {
    let is_empty = fs::read_dir(venv).map_or(true, |mut entries| entries.next().is_none());
    if stamp.is_none() && fs::symlink_metadata(venv).is_ok() && !is_empty {
        bail!(
            "{} was not made by `cargo xtask setup`, which would have to replace it: move it elsewhere, remove it, or \
             set LIBTORCH to the `torch` folder in it if that is version {TORCH_VERSION}",
            venv.display()
        );
    }
    Ok(())
}

/// Accepts the user's libtorch, or refuses it with the version that is needed.
fn use_own(own: &Own, request: Request) -> Result<Ready> {
    let (named_by, checked) = match own {
        Own::PyTorch => (
            "LIBTORCH_USE_PYTORCH".to_owned(),
            version_of_pytorch().map(|version| {
                if libtorch::is_bound(&version) {
                    Ok(version)
                } else {
                    Err(Unfit::WrongVersion(version))
                }
            })?,
        ),
        Own::Folders {
            include,
            lib,
            named_by,
        } => {
            for folder in [include, lib] {
                if folder.is_relative() {
                    // Build scripts run in other folders than the command.
                    bail!("{named_by} is a relative path: make it absolute");
                }
            }
            (named_by.clone(), libtorch::check(include, lib))
        }
    };
    let version = checked.map_err(|unfit| anyhow!(refusal(&named_by, &unfit.to_string())))?;
    if request != Request::default() {
        bail!(
            "{named_by} is set, so the build uses that libtorch and .venv would not be used: unset it, or run \
             `cargo xtask setup` without options"
        );
    }
    Ok(Ready::Own { version, named_by })
}

/// Asks the interpreter that `torch-sys` will ask.
fn version_of_pytorch() -> Result<String> {
    let python = match std::env::var_os("VIRTUAL_ENV") {
        Some(_) => "python",
        None => "python3",
    };
    let script = "import importlib.metadata as m; print(m.version('torch'))";
    let output = Command::new(python)
        .args(["-c", script])
        .output()
        .with_context(|| format!("LIBTORCH_USE_PYTORCH is set, but `{python}` cannot be run"))?;
    if !output.status.success() {
        bail!(refusal(
            "LIBTORCH_USE_PYTORCH",
            &format!("`{python}` has no package torch")
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A `.libtorch` that somebody made by hand serves as it is when it can. A link that cannot is replaced later; a
/// folder is not, because it may hold the only copy of something.
fn use_foreign_link(root: &Path, request: Request) -> Result<Option<Ready>> {
    let path = link_path(root);
    let Ok(metadata) = fs::symlink_metadata(&path) else {
        return Ok(None);
    };
    let target = fs::read_link(&path).unwrap_or_else(|_| path.clone());
    if root.join(&target).starts_with(root.join(".venv")) {
        return Ok(None);
    }
    match libtorch::check(&path, &path) {
        Ok(version) if request == Request::default() => Ok(Some(Ready::Own {
            version,
            named_by: format!(".libtorch, which leads to {}", target.display()),
        })),
        Ok(_) => bail!(
            "{} was not made by `cargo xtask setup` and leads to a usable libtorch: remove it to install another into \
             .venv",
            path.display()
        ),
        Err(unfit) if !metadata.is_symlink() => {
            bail!(
                "{} cannot be used: {unfit}. Move it elsewhere and run the command again",
                path.display()
            )
        }
        Err(unfit) => {
            say(format_args!(
                "replacing the link .libtorch to {}: {unfit}",
                target.display()
            ));
            Ok(None)
        }
    }
}

/// Points `.libtorch` at `folder` of `.venv`, in one step. The link is relative, so that the clone can be moved.
fn link(root: &Path, folder: &Path) -> Result<()> {
    let path = link_path(root);
    let target = Path::new(".venv").join(folder);
    if fs::read_link(&path).is_ok_and(|present| present == target) {
        return Ok(());
    }
    let new = root.join(format!(".libtorch.{}", std::process::id()));
    symlink(&target, &new)
        .and_then(|()| fs::rename(&new, &path))
        .with_context(|| format!("cannot link {} to {}", path.display(), target.display()))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Lets one set-up run at a time in a clone. The lock is on a file that is always there, and ends with the process.
fn lock(root: &Path) -> Result<fs::File> {
    let path = root.join("Cargo.toml");
    let file = fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            say("waiting for another process to finish its set-up of libtorch");
            file.lock().context("cannot wait for the other set-up")?;
        }
        // Some network file systems have no locks; working without one is better than not at all.
        Err(fs::TryLockError::Error(_)) => {}
    }
    Ok(file)
}

/// The Python packages beside torch, where they were asked for.
struct Requirements {
    wanted: Option<(PathBuf, String)>,
}

impl Requirements {
    fn of(root: &Path, asked: bool) -> Result<Self> {
        if !asked {
            return Ok(Self { wanted: None });
        }
        let path = root.join(REQUIREMENTS);
        let text = fs::read_to_string(&path).with_context(|| {
            format!("--python installs what {REQUIREMENTS} lists, and that file cannot be read")
        })?;
        Ok(Self {
            wanted: Some((path, text)),
        })
    }

    fn file(&self) -> Option<&Path> {
        self.wanted.as_ref().map(|(path, _)| path.as_path())
    }

    fn are_installed(&self, venv: &Venv) -> bool {
        let installed = || fs::read_to_string(venv.path().join(INSTALLED_REQUIREMENTS)).ok();
        self.wanted
            .as_ref()
            .is_none_or(|(_, text)| installed().as_ref() == Some(text))
    }

    fn remember(&self, venv: &Venv) -> Result<()> {
        let Some((_, text)) = &self.wanted else {
            return Ok(());
        };
        let path = venv.path().join(INSTALLED_REQUIREMENTS);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(mode: Mode, asked: bool, complete: bool) -> Stamp {
        Stamp {
            complete,
            torch: TORCH_VERSION.to_owned(),
            mode,
            asked,
            folder: PathBuf::new(),
        }
    }

    fn chosen(mode: Option<Mode>, stamp: Option<Stamp>, driver: bool) -> Mode {
        let request = Request {
            mode,
            python: false,
        };
        choose(request, stamp.as_ref(), || driver).0
    }

    #[test]
    fn the_driver_decides_on_a_fresh_machine() {
        assert_eq!(chosen(None, None, false), Mode::Lean);
        assert_eq!(chosen(None, None, true), Mode::Full);
    }

    #[test]
    fn a_request_wins_over_the_machine() {
        assert_eq!(chosen(Some(Mode::Lean), None, true), Mode::Lean);
        assert_eq!(chosen(Some(Mode::Full), None, false), Mode::Full);
    }

    #[test]
    fn a_driver_that_appears_later_makes_a_lean_installation_full() {
        let lean = stamp(Mode::Lean, false, true);
        assert_eq!(chosen(None, Some(lean), true), Mode::Full);
    }

    #[test]
    fn a_lean_installation_that_was_asked_for_stays_lean() {
        let lean = stamp(Mode::Lean, true, true);
        assert_eq!(chosen(None, Some(lean), true), Mode::Lean);
    }

    #[test]
    fn a_full_installation_stays_when_the_driver_is_gone() {
        let full = stamp(Mode::Full, false, true);
        assert_eq!(chosen(None, Some(full), false), Mode::Full);
    }

    #[test]
    fn an_interrupted_installation_does_not_decide() {
        let full = stamp(Mode::Full, true, false);
        assert_eq!(chosen(None, Some(full), false), Mode::Lean);
    }
}
