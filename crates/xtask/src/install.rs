//! Creates `.venv` and installs PyTorch's wheel into it with pip.

use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::libtorch::{self, TORCH_VERSION};
use crate::machine::last_lines;
use crate::python::{Disk, Python};
use crate::say;
use crate::stamp::{Mode, Stamp};

/// The CUDA libraries that `libtorch_cpu.so` of the Linux wheels links to.
const CPU_LIBRARY_DEPENDENCIES: [&str; 2] =
    ["nvidia-cuda-runtime==13.0.*", "nvidia-cuda-cupti==13.0.*"];

/// Number of output lines of venv that an error repeats.
const LINES_OF_VENV: usize = 12;

/// The size of an installation, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    pub download: u64,
    pub installed: u64,
}

impl Size {
    /// The remaining size if `installed` is installed already.
    pub fn remaining_after(self, installed: Self) -> Self {
        Self {
            download: self.download.saturating_sub(installed.download),
            installed: self.installed.saturating_sub(installed.installed),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} to download, {} on disk",
            gigabytes(self.download),
            gigabytes(self.installed)
        )
    }
}

/// The virtual environment of the project.
pub struct Venv {
    path: PathBuf,
}

impl Mode {
    /// The size of the installation, measured on Linux x86-64.
    pub fn size(self) -> Size {
        match self {
            Self::Lean => Size {
                download: 545_000_000,
                installed: 1_250_000_000,
            },
            Self::Full => Size {
                download: 2_720_000_000,
                installed: 4_900_000_000,
            },
        }
    }

    /// The options and packages for `pip install`.
    fn pip_arguments(self) -> Vec<String> {
        let mut arguments = vec![format!("torch=={TORCH_VERSION}")];
        if self == Self::Lean {
            // Rust does not import the Python modules, so that they need not be compiled to bytecode.
            arguments.splice(0..0, ["--no-deps".to_owned(), "--no-compile".to_owned()]);
            if cfg!(target_os = "linux") {
                arguments.extend(CPU_LIBRARY_DEPENDENCIES.map(str::to_owned));
            }
        }
        arguments
    }
}

impl Venv {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Records the state of the installation.
    pub fn stamp(&self, stamp: &Stamp) -> Result<()> {
        stamp
            .write(&self.path)
            .with_context(|| format!("cannot write to {}", self.path.display()))
    }

    /// Whether its Python still runs. It does not if the Python that it was created from has been removed.
    pub fn works(&self) -> bool {
        self.command()
            .args(["-m", "pip", "--version"])
            .output()
            .is_ok_and(|output| output.status.success())
    }

    /// Creates the environment from scratch and removes an existing one. `stamp` is written first, so that a folder that
    /// an interruption leaves behind is known to belong to this program.
    pub fn create(&self, python: &Python, stamp: &Stamp) -> Result<()> {
        if fs::symlink_metadata(&self.path).is_ok() {
            say("the existing .venv is not usable: creating it again");
            fs::remove_dir_all(&self.path)
                .with_context(|| format!("cannot remove {}", self.path.display()))?;
        }
        fs::create_dir_all(&self.path)
            .with_context(|| format!("cannot create {}", self.path.display()))?;
        self.stamp(stamp)?;
        let output = without_python_variables(Command::new(&python.command))
            .args(["-m", "venv"])
            .arg(&self.path)
            .output()
            .with_context(|| format!("cannot run {}", python.command.display()))?;
        if !output.status.success() {
            let mut messages = output.stdout;
            messages.extend(output.stderr);
            bail!(
                "`{} -m venv {}` failed:\n{}",
                python.command.display(),
                self.path.display(),
                last_lines(&String::from_utf8_lossy(&messages), LINES_OF_VENV)
            );
        }
        Ok(())
    }

    /// Installs the packages of `mode` and those of the file `requirements`.
    pub fn install(&self, mode: Mode, requirements: Option<&Path>) -> Result<()> {
        let mut pip = self.pip_install();
        pip.args(mode.pip_arguments());
        if let Some(file) = requirements {
            pip.arg("--requirement").arg(file);
        }
        run_pip(&mut pip, &format!("torch {TORCH_VERSION}"))
    }

    /// Installs `packages` without their dependencies.
    pub fn add(&self, packages: &[&str]) -> Result<()> {
        let mut pip = self.pip_install();
        pip.arg("--no-deps").args(packages);
        run_pip(&mut pip, &packages.join(", "))
    }

    fn pip_install(&self) -> Command {
        let mut pip = self.command();
        pip.args(["-m", "pip", "install", "--no-input"]);
        pip.arg("--disable-pip-version-check");
        pip
    }

    /// Checks the installed libtorch and returns the wheel's `torch` folder, relative to the environment. Loads the CPU
    /// library once, so that a missing dependency is found here and not by the first program that is built.
    pub fn verify(&self) -> Result<PathBuf> {
        let folder = self.torch_folder()?;
        let torch = self.path.join(&folder);
        libtorch::check(&torch, &torch)
            .map_err(|error| anyhow!("pip installed torch, but {error}"))?;
        let output = self
            .command()
            .args(["-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])"])
            .arg(libtorch::cpu_library(&torch))
            .output()
            .context("cannot run the Python of .venv")?;
        if !output.status.success() {
            bail!(
                "libtorch was installed but cannot be loaded:\n{}\nRemove .venv and run `cargo xtask setup` again",
                last_lines(&String::from_utf8_lossy(&output.stderr), 2)
            );
        }
        Ok(folder)
    }

    fn torch_folder(&self) -> Result<PathBuf> {
        let output = self
            .command()
            .args([
                "-c",
                "import sysconfig; print(sysconfig.get_path('platlib'))",
            ])
            .output()
            .context("cannot run the Python of .venv")?;
        let platlib = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let inside = platlib.strip_prefix(&self.path).with_context(|| {
            format!(
                "Python installs packages into {}, not into .venv",
                platlib.display()
            )
        })?;
        Ok(inside.join("torch"))
    }

    fn command(&self) -> Command {
        without_python_variables(Command::new(self.path.join("bin/python")))
    }
}

/// Checks the free space before the download. Requires a tenth more than the measured size.
pub fn check_disk(disk: &Disk, size: Size, root: &Path) -> Result<()> {
    let root = root.display().to_string();
    let requirements = if disk.same_disk {
        vec![(&root, size.installed + size.download, disk.project)]
    } else {
        vec![
            (&root, size.installed, disk.project),
            (&disk.temporary_folder, size.download, disk.temporary),
        ]
    };
    for (folder, measured, free) in requirements {
        let needed = measured + measured / 10;
        if free < needed {
            bail!(
                "not enough disk space: the set-up needs {} in {folder}, but only {} are free. Free some space, or set \
                 TMPDIR to a folder on another disk for the download",
                gigabytes(needed),
                gigabytes(free)
            );
        }
    }
    Ok(())
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Removes the environment variables that would make Python or pip use other folders than `.venv`.
fn without_python_variables(mut command: Command) -> Command {
    for name in [
        "PYTHONHOME",
        "PYTHONPATH",
        "PIP_USER",
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_ROOT",
        "PIP_REQUIREMENT",
    ] {
        command.env_remove(name);
    }
    command
}

fn run_pip(pip: &mut Command, what: &str) -> Result<()> {
    let (succeeded, messages) = run_and_capture_stderr(pip)?;
    if !succeeded {
        // The messages have been written to standard error already.
        bail!("pip could not install {what}. {}", hint(&messages));
    }
    Ok(())
}

/// Runs `command` with all output on standard error. Returns whether it succeeded, and what it wrote to standard error
/// itself.
fn run_and_capture_stderr(command: &mut Command) -> Result<(bool, String)> {
    let name = Path::new(command.get_program()).to_path_buf();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(progress_output()?)
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", name.display()))?;
    let mut messages = String::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line.context("cannot read the messages of pip")?;
            let line = String::from_utf8_lossy(&line);
            say(&line);
            messages.push_str(&line);
            messages.push('\n');
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {}", name.display()))?;
    if !status.success() && messages.trim().is_empty() {
        messages = format!("pip ended with {status} and without messages");
    }
    Ok((status.success(), messages))
}

/// Standard error, for the standard output of a program that reports progress there. The standard output of this process
/// is for the results of the command that follows.
#[cfg(unix)]
fn progress_output() -> Result<Stdio> {
    use std::os::fd::AsFd;
    let stderr = io::stderr();
    let copy = stderr.as_fd().try_clone_to_owned();
    Ok(copy.context("cannot share standard error with pip")?.into())
}

#[cfg(not(unix))]
fn progress_output() -> Result<Stdio> {
    Ok(Stdio::null())
}

/// The most likely fix, according to the messages of pip.
fn hint(messages: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| messages.contains(word));
    if has(&["No space left on device"]) {
        "The disk is full: free some space, or set TMPDIR to a folder on another disk, and run the command again"
    } else if has(&["CERTIFICATE_VERIFY_FAILED", "SSLError"]) {
        "The certificate of the package index is not trusted: set PIP_CERT to the certificate file of your network"
    } else if has(&[
        "NewConnectionError",
        "Temporary failure in name resolution",
        "ReadTimeoutError",
        "ConnectTimeoutError",
        "ConnectionResetError",
        "ProxyError",
        "IncompleteRead",
    ]) {
        "The package index could not be reached: check the network (HTTPS_PROXY, PIP_INDEX_URL) and run the command again"
    } else if has(&["DO NOT MATCH THE HASHES"]) {
        "A download was damaged: run `.venv/bin/python -m pip cache purge`, then run the command again"
    } else if has(&["No matching distribution", "not a supported wheel"]) {
        "PyTorch has wheels for CPython 3.10 to 3.14 on Linux (x86-64 and ARM64, glibc 2.28 or newer) and on macOS \
         (ARM64); set PYTHON to choose another Python. If PIP_INDEX_URL is set, its index may lack the wheel"
    } else if has(&["signal: 9", "MemoryError"]) {
        "pip ran out of memory: set PIP_NO_CACHE_DIR=1 and run the command again"
    } else {
        "Run the command again: it starts an interrupted installation over"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Disk = Disk {
        project: 10_000_000_000,
        temporary: 10_000_000_000,
        temporary_folder: String::new(),
        same_disk: false,
    };

    fn lack_of_space(disk: &Disk) -> String {
        let error = check_disk(disk, Mode::Lean.size(), Path::new("/project"));
        error.unwrap_err().to_string()
    }

    #[test]
    fn lean_installs_only_the_wheel_and_the_libraries_that_it_links_to() {
        let arguments = Mode::Lean.pip_arguments();
        assert!(arguments.contains(&"--no-deps".to_owned()));
        assert!(arguments.contains(&"torch==2.11.0".to_owned()));
        assert_eq!(
            arguments.contains(&"nvidia-cuda-runtime==13.0.*".to_owned()),
            cfg!(target_os = "linux")
        );
    }

    #[test]
    fn full_leaves_the_dependencies_to_pip() {
        assert_eq!(Mode::Full.pip_arguments(), ["torch==2.11.0"]);
    }

    #[test]
    fn enough_space_is_accepted() {
        check_disk(&DISK, Mode::Full.size(), Path::new("/project")).unwrap();
    }

    #[test]
    fn the_error_of_too_little_space_names_the_folder_and_both_sizes() {
        let project = Disk {
            project: 200_000_000,
            ..DISK
        };
        let text = lack_of_space(&project);
        for part in ["/project", "1.4 GB", "0.2 GB"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        let temporary = Disk {
            temporary: 200_000_000,
            temporary_folder: "/small/tmp".to_owned(),
            ..DISK
        };
        assert!(lack_of_space(&temporary).contains("/small/tmp"));
    }

    #[test]
    fn only_the_remaining_size_is_counted() {
        let size = Mode::Full.size().remaining_after(Mode::Lean.size());
        assert_eq!(size.to_string(), "2.2 GB to download, 3.6 GB on disk");
        let nothing = Mode::Lean.size().remaining_after(Mode::Full.size());
        check_disk(
            &Disk {
                project: 0,
                temporary: 0,
                ..DISK
            },
            nothing,
            Path::new("/project"),
        )
        .unwrap();
    }

    #[test]
    fn on_one_disk_download_and_installation_add_up() {
        let disk = Disk {
            project: 1_500_000_000,
            temporary: 1_500_000_000,
            same_disk: true,
            ..DISK
        };
        assert!(lack_of_space(&disk).contains("2.0 GB"));
    }

    #[test]
    fn hints_depend_on_the_messages_of_pip() {
        for (messages, part) in [
            (
                "ERROR: No matching distribution found for torch==2.11.0",
                "glibc",
            ),
            (
                "OSError: [Errno 28] No space left on device",
                "disk is full",
            ),
            ("Caused by NewConnectionError('...')", "network"),
            (
                "ERROR: Could not find a version (ReadTimeoutError)\nERROR: No matching distribution",
                "network",
            ),
            (
                "certificate verify failed: CERTIFICATE_VERIFY_FAILED",
                "PIP_CERT",
            ),
            ("pip ended with signal: 9 (SIGKILL)", "memory"),
            ("something else", "again"),
        ] {
            assert!(
                hint(messages).contains(part),
                "{messages}: {}",
                hint(messages)
            );
        }
    }
}
