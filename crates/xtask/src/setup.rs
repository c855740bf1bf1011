//! Determines what is missing for a build, and installs it.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};

use crate::install::{Venv, check_disk};
use crate::libtorch::{
    self, Environment, TORCH_VERSION, Unusable, UserLibtorch, link_path, refusal,
};
use crate::machine::{Driver, Platform, check_compiler};
use crate::python::Python;
use crate::say;
use crate::stamp::{Mode, Stamp};

/// The file that lists the Python packages of the exporters and the comparisons with Python, relative to the workspace.
pub const REQUIREMENTS: &str = "crates/encoders/python/requirements.txt";

/// A copy of the installed requirements in `.venv`, to detect changes of the file.
const INSTALLED_REQUIREMENTS: &str = "installed-requirements.txt";

/// The installation that a command needs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Request {
    /// How much of the wheel to install. `None` chooses by the existing installation and the NVIDIA driver.
    pub mode: Option<Mode>,
    /// Whether to install the Python packages of [`REQUIREMENTS`] as well.
    pub python: bool,
}

/// The result of a set-up: the libtorch that a build will use.
#[derive(Debug)]
pub enum Outcome {
    /// The libtorch in `.venv`.
    Installed {
        /// How much of the wheel is installed.
        mode: Mode,
        /// Duration of the installation; `None` if it was installed before.
        seconds: Option<u64>,
    },
    /// A libtorch that the user chose.
    UserProvided {
        /// Its version, such as `2.11.0+cpu`.
        version: String,
        /// The variables or the link that selected it.
        named_by: String,
    },
}

impl Outcome {
    /// Whether a command whose purpose is not the set-up should report this outcome.
    pub fn is_worth_reporting(&self) -> bool {
        !matches!(self, Self::Installed { seconds: None, .. })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installed { mode, seconds } => {
                write!(f, "libtorch {TORCH_VERSION} ({mode}) is ready in .venv")?;
                match seconds {
                    Some(seconds) => write!(f, " after {seconds} s"),
                    None => Ok(()),
                }
            }
            Self::UserProvided { version, named_by } => {
                write!(f, "using libtorch {version} of {named_by}")
            }
        }
    }
}

/// Makes libtorch available to the build in `root`. Returns immediately if it is available already.
///
/// # Errors
/// Something that the set-up needs is missing (Python, a C++ compiler, disk space, the network), or the libtorch that
/// the user chose cannot be used.
pub fn setup(root: &Path, environment: &Environment, request: Request) -> Result<Outcome> {
    if let Some(libtorch) = environment.user_libtorch(root) {
        return use_user_libtorch(&libtorch, request);
    }
    let _lock = lock(root)?;
    if let Some(outcome) = use_foreign_link(root, request)? {
        return Ok(outcome);
    }

    let requirements = Requirements::of(root, request.python)?;
    let venv = Venv::new(root.join(".venv"));
    let stamp = Stamp::read(venv.path());
    let (mode, requested) = choose(request, stamp.as_ref(), || Driver::find().is_some());
    let usable = stamp.clone().filter(|stamp| is_usable(stamp, &venv));

    if let Some(present) = &usable
        && present.mode >= mode
        && requirements.are_installed(&venv)
    {
        if present.mode > mode {
            say(
                "keeping the full installation, which includes the lean one; to free its disk space, remove .venv first",
            );
        } else if requested && !present.requested {
            let stamp = Stamp {
                requested,
                ..present.clone()
            };
            venv.stamp(&stamp)?;
        }
        link(root, &present.folder)?;
        return Ok(Outcome::Installed {
            mode: present.mode,
            seconds: None,
        });
    }
    let start = Instant::now();
    check_created_by_setup(venv.path(), stamp.as_ref())?;
    let target = Stamp {
        complete: false,
        torch: TORCH_VERSION.to_owned(),
        mode,
        requested,
        folder: stamp.map(|stamp| stamp.folder).unwrap_or_default(),
    };
    let folder = install(root, &venv, usable.as_ref(), &target, &requirements).with_context(|| {
        format!(
            "cannot install libtorch {TORCH_VERSION} ({mode}) into .venv (to use a libtorch of your own instead, set LIBTORCH)"
        )
    })?;
    link(root, &folder)?;
    Ok(Outcome::Installed {
        mode,
        seconds: Some(start.elapsed().as_secs()),
    })
}

/// Chooses the mode, and returns whether the user requested it. Without a request, a full installation stays full, and a
/// lean installation that the user requested stays lean even if a driver is found.
fn choose(request: Request, stamp: Option<&Stamp>, driver: impl FnOnce() -> bool) -> (Mode, bool) {
    if let Some(mode) = request.mode {
        return (mode, true);
    }
    match stamp.filter(|stamp| stamp.complete) {
        Some(stamp) if stamp.requested || stamp.mode == Mode::Full => (stamp.mode, stamp.requested),
        _ if driver() => (Mode::Full, false),
        _ => (Mode::Lean, false),
    }
}

fn is_usable(stamp: &Stamp, venv: &Venv) -> bool {
    let torch = venv.path().join(&stamp.folder);
    stamp.complete && stamp.torch == TORCH_VERSION && libtorch::check(&torch, &torch).is_ok()
}

/// Installs the libtorch that `target` describes, and extends the installation `usable` if there is one. Returns the
/// `torch` folder in `venv`.
fn install(
    root: &Path,
    venv: &Venv,
    usable: Option<&Stamp>,
    target: &Stamp,
    requirements: &Requirements,
) -> Result<PathBuf> {
    if cfg!(windows) {
        bail!(
            "the set-up supports Linux and macOS. On Windows, use WSL 2, or set LIBTORCH to a libtorch \
             {TORCH_VERSION} of your own"
        );
    }
    let platform = Platform::of_machine();
    check_compiler(platform)?;
    let python = Python::find(root, platform)?;

    let mode = target.mode;
    let extended = usable.filter(|_| venv.works());
    let size = match extended {
        Some(present) => mode.size().remaining_after(present.mode.size()),
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
        Some(_) => venv.stamp(target)?,
        None => venv.create(&python, target)?,
    }
    venv.install(mode, requirements.file())?;
    let folder = venv.verify()?;
    requirements.record(venv)?;
    venv.stamp(&Stamp {
        complete: true,
        folder: folder.clone(),
        ..target.clone()
    })?;
    Ok(folder)
}

/// Refuses to replace a `.venv` that the set-up did not create.
fn check_created_by_setup(venv: &Path, stamp: Option<&Stamp>) -> Result<()> {
    let is_empty = fs::read_dir(venv).map_or(true, |mut entries| entries.next().is_none());
    if stamp.is_none() && fs::symlink_metadata(venv).is_ok() && !is_empty {
        bail!(
            "{} was not created by `cargo xtask setup`, which would have to replace it: move it to another folder, \
             remove it, or, if it has torch {TORCH_VERSION}, set LIBTORCH to its `torch` folder",
            venv.display()
        );
    }
    Ok(())
}

/// Checks the libtorch that the user chose. An unsupported one is an error that states the required version.
fn use_user_libtorch(user_libtorch: &UserLibtorch, request: Request) -> Result<Outcome> {
    let (named_by, checked) = match user_libtorch {
        UserLibtorch::PyTorch => (
            "LIBTORCH_USE_PYTORCH".to_owned(),
            version_of_pytorch().map(|version| {
                if libtorch::is_supported(&version) {
                    Ok(version)
                } else {
                    Err(Unusable::WrongVersion(version))
                }
            })?,
        ),
        UserLibtorch::Folders {
            include,
            lib,
            named_by,
        } => {
            for folder in [include, lib] {
                if folder.is_relative() {
                    // Build scripts run in other folders than this command.
                    bail!("{named_by} is a relative path: use an absolute path");
                }
            }
            (named_by.clone(), libtorch::check(include, lib))
        }
    };
    let version = checked.map_err(|error| anyhow!(refusal(&named_by, &error.to_string())))?;
    if request != Request::default() {
        bail!(
            "{named_by} is set, so that the build uses this libtorch and not .venv: unset it, or run `cargo xtask setup` \
             without options"
        );
    }
    Ok(Outcome::UserProvided { version, named_by })
}

/// The version of the `torch` package, read with the Python interpreter that `torch-sys` will use.
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
            &format!("`{python}` does not have the package torch")
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Uses a `.libtorch` that the set-up did not create, if it is a usable libtorch. An unusable link is replaced later. An
/// unusable folder is not replaced, because it may be the only copy of its content.
fn use_foreign_link(root: &Path, request: Request) -> Result<Option<Outcome>> {
    let path = link_path(root);
    let Ok(metadata) = fs::symlink_metadata(&path) else {
        return Ok(None);
    };
    let target = fs::read_link(&path).unwrap_or_else(|_| path.clone());
    if root.join(&target).starts_with(root.join(".venv")) {
        return Ok(None);
    }
    match libtorch::check(&path, &path) {
        Ok(version) if request == Request::default() => Ok(Some(Outcome::UserProvided {
            version,
            named_by: format!(".libtorch, which links to {}", target.display()),
        })),
        Ok(_) => bail!(
            "{} was not created by `cargo xtask setup`, and it is a usable libtorch: remove it to install another one \
             into .venv",
            path.display()
        ),
        Err(error) if !metadata.is_symlink() => {
            bail!(
                "{} cannot be used: {error}. Move it to another folder and run the command again",
                path.display()
            )
        }
        Err(error) => {
            say(format_args!(
                "replacing the link .libtorch to {}: {error}",
                target.display()
            ));
            Ok(None)
        }
    }
}

/// Atomically links `.libtorch` to `folder` in `.venv`. The link is relative, so that the clone can be moved.
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

/// Ensures that only one set-up runs in a clone at a time. The lock is on `Cargo.toml`, which always exists, and ends with
/// the process.
fn lock(root: &Path) -> Result<fs::File> {
    let path = root.join("Cargo.toml");
    let file = fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            say("waiting for another process to finish its set-up of libtorch");
            file.lock().context("cannot wait for the other set-up")?;
        }
        // Some network file systems do not support locks. The set-up then runs without one.
        Err(fs::TryLockError::Error(_)) => {}
    }
    Ok(file)
}

/// The Python packages that are installed in addition to torch.
struct Requirements {
    /// Path and content of the requirements file; `None` if no packages were requested.
    file: Option<(PathBuf, String)>,
}

impl Requirements {
    fn of(root: &Path, requested: bool) -> Result<Self> {
        if !requested {
            return Ok(Self { file: None });
        }
        let path = root.join(REQUIREMENTS);
        let text = fs::read_to_string(&path).with_context(|| {
            format!("cannot read {REQUIREMENTS}, which lists the packages that --python installs")
        })?;
        Ok(Self {
            file: Some((path, text)),
        })
    }

    fn file(&self) -> Option<&Path> {
        self.file.as_ref().map(|(path, _)| path.as_path())
    }

    fn are_installed(&self, venv: &Venv) -> bool {
        let installed = || fs::read_to_string(venv.path().join(INSTALLED_REQUIREMENTS)).ok();
        self.file
            .as_ref()
            .is_none_or(|(_, text)| installed().as_ref() == Some(text))
    }

    /// Records in `venv` that the packages are installed.
    fn record(&self, venv: &Venv) -> Result<()> {
        let Some((_, text)) = &self.file else {
            return Ok(());
        };
        let path = venv.path().join(INSTALLED_REQUIREMENTS);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(mode: Mode, requested: bool, complete: bool) -> Stamp {
        Stamp {
            complete,
            torch: TORCH_VERSION.to_owned(),
            mode,
            requested,
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
    fn the_driver_determines_the_mode_of_a_first_installation() {
        assert_eq!(chosen(None, None, false), Mode::Lean);
        assert_eq!(chosen(None, None, true), Mode::Full);
    }

    #[test]
    fn a_request_takes_precedence_over_the_driver() {
        assert_eq!(chosen(Some(Mode::Lean), None, true), Mode::Lean);
        assert_eq!(chosen(Some(Mode::Full), None, false), Mode::Full);
    }

    #[test]
    fn a_driver_that_is_installed_later_makes_a_lean_installation_full() {
        let lean = stamp(Mode::Lean, false, true);
        assert_eq!(chosen(None, Some(lean), true), Mode::Full);
    }

    #[test]
    fn a_requested_lean_installation_stays_lean() {
        let lean = stamp(Mode::Lean, true, true);
        assert_eq!(chosen(None, Some(lean), true), Mode::Lean);
    }

    #[test]
    fn a_full_installation_stays_full_without_a_driver() {
        let full = stamp(Mode::Full, false, true);
        assert_eq!(chosen(None, Some(full), false), Mode::Full);
    }

    #[test]
    fn an_interrupted_installation_does_not_affect_the_mode() {
        let full = stamp(Mode::Full, true, false);
        assert_eq!(chosen(None, Some(full), false), Mode::Lean);
    }
}
