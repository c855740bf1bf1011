//! Makes `.venv` and installs PyTorch's wheel into it with pip.

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
const CPU_LIBRARY_NEEDS: [&str; 2] = ["nvidia-cuda-runtime==13.0.*", "nvidia-cuda-cupti==13.0.*"];

/// Lines of venv's that an error repeats.
const LINES_OF_VENV: usize = 12;

/// Space that an installation takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    pub download: u64,
    pub installed: u64,
}

impl Size {
    /// What is still to come when `present` is there.
    pub fn beyond(self, present: Self) -> Self {
        Self {
            download: self.download.saturating_sub(present.download),
            installed: self.installed.saturating_sub(present.installed),
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
    /// Measured on Linux x86-64.
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

    /// What pip is told to install, in the order of its command line.
    fn packages(self) -> Vec<String> {
        let mut packages = vec![format!("torch=={TORCH_VERSION}")];
        if self == Self::Lean {
            // Nothing in Rust imports the modules, so they are not compiled to bytecode.
            packages.splice(0..0, ["--no-deps".to_owned(), "--no-compile".to_owned()]);
            if cfg!(target_os = "linux") {
                packages.extend(CPU_LIBRARY_NEEDS.map(str::to_owned));
            }
        }
        packages
    }
}

impl Venv {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes down the state of the installation.
    pub fn stamp(&self, stamp: &Stamp) -> Result<()> {
        stamp
            .write(&self.path)
            .with_context(|| format!("cannot write to {}", self.path.display()))
    }

    /// Whether its Python still runs; one whose base was removed does not.
    pub fn works(&self) -> bool {
        self.command()
            .args(["-m", "pip", "--version"])
            .output()
            .is_ok_and(|output| output.status.success())
    }

    /// Makes the environment anew, removing what an earlier set-up left. `stamp` is written first, so that an
    /// interruption leaves a folder that is known to be this program's.
    pub fn create(&self, python: &Python, stamp: &Stamp) -> Result<()> {
        if fs::symlink_metadata(&self.path).is_ok() {
            say("what is in .venv is not usable: starting over");
            fs::remove_dir_all(&self.path)
                .with_context(|| format!("cannot remove {}", self.path.display()))?;
        }
        fs::create_dir_all(&self.path)
            .with_context(|| format!("cannot make {}", self.path.display()))?;
        self.stamp(stamp)?;
        let output = clean(Command::new(&python.command))
            .args(["-m", "venv"])
            .arg(&self.path)
            .output()
            .with_context(|| format!("cannot run {}", python.command.display()))?;
        if !output.status.success() {
            let mut said = output.stdout;
            said.extend(output.stderr);
            bail!(
                "`{} -m venv {}` failed:\n{}",
                python.command.display(),
                self.path.display(),
                last_lines(&String::from_utf8_lossy(&said), LINES_OF_VENV)
            );
        }
        Ok(())
    }

    /// Installs what `mode` takes, and `requirements` beside it.
    pub fn install(&self, mode: Mode, requirements: Option<&Path>) -> Result<()> {
        let mut pip = self.command();
        pip.args(["-m", "pip", "install", "--no-input"]);
        pip.arg("--disable-pip-version-check");
        pip.args(mode.packages());
        if let Some(file) = requirements {
            pip.arg("--requirement").arg(file);
        }
        let (succeeded, said) = run_and_listen(&mut pip)?;
        if !succeeded {
            // Its messages are on standard error already.
            bail!(
                "pip could not install torch {TORCH_VERSION}. {}",
                hint(&said)
            );
        }
        Ok(())
    }

    /// The wheel's `torch` folder relative to the environment, after loading its CPU library once: a library that is
    /// missing beside it is found here and not by the first program.
    pub fn verify(&self) -> Result<PathBuf> {
        let folder = self.torch_folder()?;
        let torch = self.path.join(&folder);
        libtorch::check(&torch, &torch)
            .map_err(|unfit| anyhow!("pip installed torch, but {unfit}"))?;
        let output = self
            .command()
            .args(["-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])"])
            .arg(libtorch::cpu_library(&torch))
            .output()
            .context("cannot run .venv's Python")?;
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
            .context("cannot run .venv's Python")?;
        let platlib = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let inside = platlib.strip_prefix(&self.path).with_context(|| {
            format!(
                "Python's packages are in {}, not in .venv",
                platlib.display()
            )
        })?;
        Ok(inside.join("torch"))
    }

    fn command(&self) -> Command {
        clean(Command::new(self.path.join("bin/python")))
    }
}

/// Says where space is short before gigabytes are downloaded. Asks for a tenth more than was measured.
pub fn check_disk(disk: &Disk, size: Size, root: &Path) -> Result<()> {
    let root = root.display().to_string();
    let demands = if disk.same {
        vec![(&root, size.installed + size.download, disk.here)]
    } else {
        vec![
            (&root, size.installed, disk.here),
            (&disk.temporary_folder, size.download, disk.temporary),
        ]
    };
    for (folder, measured, free) in demands {
        let needed = measured + measured / 10;
        if free < needed {
            bail!(
                "not enough disk space: the set-up needs {} in {folder}, where {} are free. Free some, or set TMPDIR \
                 to a folder on another disk for the download",
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

/// Takes away the variables that would send Python or pip elsewhere than into `.venv`.
fn clean(mut command: Command) -> Command {
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

/// Runs `command` with its output on standard error, and keeps what it said there itself.
fn run_and_listen(command: &mut Command) -> Result<(bool, String)> {
    let name = Path::new(command.get_program()).to_path_buf();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(progress_output()?)
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", name.display()))?;
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line.context("cannot read pip's messages")?;
            let line = String::from_utf8_lossy(&line);
            say(&line);
            said.push_str(&line);
            said.push('\n');
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {}", name.display()))?;
    if !status.success() && said.trim().is_empty() {
        said = format!("pip ended with {status} and said nothing");
    }
    Ok((status.success(), said))
}

/// Standard error, for a program that reports progress on standard output: the results of the command that follows
/// must stand there alone.
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

/// What most likely helps, judged by pip's own words.
fn hint(said: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["No space left on device"]) {
        "The disk is full: free some space, or set TMPDIR to a folder on another disk, and run the command again"
    } else if has(&["CERTIFICATE_VERIFY_FAILED", "SSLError"]) {
        "The package index's certificate is not trusted: set PIP_CERT to your network's certificate file"
    } else if has(&[
        "NewConnectionError",
        "Temporary failure in name resolution",
        "ReadTimeoutError",
        "ConnectTimeoutError",
        "ConnectionResetError",
        "ProxyError",
        "IncompleteRead",
    ]) {
        "The package index was not reached: check the network (HTTPS_PROXY, PIP_INDEX_URL) and run the command again"
    } else if has(&["DO NOT MATCH THE HASHES"]) {
        "A download was damaged: run `.venv/bin/python -m pip cache purge` and the command again"
    } else if has(&["No matching distribution", "not a supported wheel"]) {
        "PyTorch has wheels for CPython 3.10 to 3.14 on Linux (x86-64 and ARM64, glibc 2.28 or newer) and on macOS \
         (ARM64); PYTHON names another Python. If PIP_INDEX_URL is set, its index may lack the wheel"
    } else if has(&["signal: 9", "MemoryError"]) {
        "pip ran out of memory: set PIP_NO_CACHE_DIR=1 and run the command again"
    } else {
        "Run the command again; an installation that was cut off is started over"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Disk = Disk {
        here: 10_000_000_000,
        temporary: 10_000_000_000,
        temporary_folder: String::new(),
        same: false,
    };

    fn short_of(disk: &Disk) -> String {
        let error = check_disk(disk, Mode::Lean.size(), Path::new("/project"));
        error.unwrap_err().to_string()
    }

    #[test]
    fn lean_brings_the_wheel_alone_with_what_its_library_links_to() {
        let packages = Mode::Lean.packages();
        assert!(packages.contains(&"--no-deps".to_owned()));
        assert!(packages.contains(&"torch==2.11.0".to_owned()));
        assert_eq!(
            packages.contains(&"nvidia-cuda-runtime==13.0.*".to_owned()),
            cfg!(target_os = "linux")
        );
    }

    #[test]
    fn full_leaves_the_dependencies_to_pip() {
        assert_eq!(Mode::Full.packages(), ["torch==2.11.0"]);
    }

    #[test]
    fn enough_space_passes() {
        check_disk(&DISK, Mode::Full.size(), Path::new("/project")).unwrap();
    }

    #[test]
    fn too_little_space_names_the_folder_and_both_figures() {
        let here = Disk {
            here: 200_000_000,
            ..DISK
        };
        let text = short_of(&here);
        for part in ["/project", "1.4 GB", "0.2 GB"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        let temporary = Disk {
            temporary: 200_000_000,
            temporary_folder: "/small/tmp".to_owned(),
            ..DISK
        };
        assert!(short_of(&temporary).contains("/small/tmp"));
    }

    #[test]
    fn only_what_is_not_there_yet_is_counted() {
        let size = Mode::Full.size().beyond(Mode::Lean.size());
        assert_eq!(size.to_string(), "2.2 GB to download, 3.6 GB on disk");
        let nothing = Mode::Lean.size().beyond(Mode::Full.size());
        check_disk(
            &Disk {
                here: 0,
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
            here: 1_500_000_000,
            temporary: 1_500_000_000,
            same: true,
            ..DISK
        };
        assert!(short_of(&disk).contains("2.0 GB"));
    }

    #[test]
    fn hints_follow_what_pip_said() {
        for (said, part) in [
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
            assert!(hint(said).contains(part), "{said}: {}", hint(said));
        }
    }
}
