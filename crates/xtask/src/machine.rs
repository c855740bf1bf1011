//! Detects the platform, an NVIDIA driver and a C++ compiler, and knows how to install missing tools.

use std::env;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The oldest driver version that supports CUDA 13, which the wheel is built with.
const CUDA_13_DRIVER: u32 = 580;

/// The kind of system, which determines how tools are installed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Platform {
    Debian,
    Fedora,
    Arch,
    Suse,
    Alpine,
    MacOs,
    Windows,
    Other,
}

/// A tool that the set-up needs but does not install.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tool {
    Compiler,
    Python,
    Venv,
}

impl Platform {
    pub fn of_machine() -> Self {
        if cfg!(target_os = "macos") {
            return Self::MacOs;
        }
        if cfg!(windows) {
            return Self::Windows;
        }
        fs::read_to_string("/etc/os-release").map_or(Self::Other, |text| Self::of_os_release(&text))
    }

    /// Reads `ID` and `ID_LIKE` of `/etc/os-release`.
    fn of_os_release(text: &str) -> Self {
        let values = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .filter(|(key, _)| matches!(*key, "ID" | "ID_LIKE"))
            .flat_map(|(_, value)| value.trim_matches(['"', '\'']).split_whitespace());
        for name in values {
            match name {
                "debian" | "ubuntu" => return Self::Debian,
                "fedora" | "rhel" | "centos" => return Self::Fedora,
                "arch" => return Self::Arch,
                "suse" | "opensuse" => return Self::Suse,
                "alpine" => return Self::Alpine,
                _ => {}
            }
        }
        Self::Other
    }

    /// How to install `tool` on this platform, as the end of a sentence.
    pub fn install_hint(self, tool: Tool) -> &'static str {
        use Platform::*;
        match (self, tool) {
            (Debian, Tool::Compiler) => "`sudo apt-get install g++`",
            (Debian, Tool::Python) => "`sudo apt-get install python3 python3-venv`",
            (Debian, Tool::Venv) => "`sudo apt-get install python3-venv`",
            (Fedora, Tool::Compiler) => "`sudo dnf install gcc-c++`",
            (Fedora, _) => "`sudo dnf install python3.12`",
            (Arch, Tool::Compiler) => "`sudo pacman -S gcc`",
            (Arch, _) => "`sudo pacman -S python`",
            (Suse, Tool::Compiler) => "`sudo zypper install gcc-c++`",
            (Suse, _) => "`sudo zypper install python312`",
            // PyTorch has no wheels for musl, so that Alpine's own Python would not help.
            (Alpine, _) => "use a distribution with glibc: PyTorch has no wheels for musl",
            (MacOs, Tool::Compiler) => "`xcode-select --install`",
            (MacOs, _) => "`brew install python@3.12`",
            (Windows, _) => "use WSL 2",
            (Other, Tool::Compiler) => "install g++ or clang++ with the system's package manager",
            (Other, Tool::Python) => {
                "install Python 3.10 to 3.14 with the system's package manager"
            }
            (Other, Tool::Venv) => {
                "install Python's venv and ensurepip with the system's package manager"
            }
        }
    }
}

/// An NVIDIA driver, with its version if that is known.
#[derive(Debug, PartialEq)]
pub struct Driver {
    pub version: Option<String>,
}

impl Driver {
    /// Looks for the kernel module, its device file and the driver of WSL 2. Calls `nvidia-smi` last, because it takes a
    /// second.
    pub fn find() -> Option<Self> {
        let module = "/proc/driver/nvidia/version";
        if let Ok(text) = fs::read_to_string(module) {
            return Some(Self {
                version: driver_version(&text),
            });
        }
        let files = ["/dev/nvidia0", "/usr/lib/wsl/lib/libcuda.so.1"];
        if files.iter().any(|file| Path::new(file).exists()) {
            return Some(Self { version: None });
        }
        let listing = Command::new("nvidia-smi").arg("-L").output().ok()?;
        let found = listing.status.success() && listing.stdout.starts_with(b"GPU ");
        found.then_some(Self { version: None })
    }

    /// A warning if the driver is too old for the CUDA version of the wheel.
    pub fn warning(&self) -> Option<String> {
        let version = self.version.as_ref()?;
        let major: u32 = version.split('.').next()?.parse().ok()?;
        (major < CUDA_13_DRIVER).then(|| {
            format!(
                "warning: the NVIDIA driver has version {version}, but CUDA 13 needs {CUDA_13_DRIVER} or newer. Until \
                 the driver is updated, runs use the CPU"
            )
        })
    }
}

/// Finds `535.104.05` in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 ...`.
fn driver_version(text: &str) -> Option<String> {
    let line = text
        .lines()
        .find(|line| line.starts_with("NVRM version:"))?;
    line.split_whitespace()
        .find(|word| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok()))
        .map(str::to_owned)
}

/// The value of `CXX`, if it is set.
fn named_compiler() -> Option<String> {
    env::var("CXX").ok().filter(|cxx| !cxx.trim().is_empty())
}

/// The C++ compiler of the build: the words of `CXX` if it is set, otherwise `c++`.
pub fn compiler() -> Command {
    let named = named_compiler();
    let mut words = named.as_deref().unwrap_or("c++").split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("c++"));
    command.args(words);
    command
}

/// Checks that the compiler of the build accepts a small C++17 program.
pub fn check_compiler(platform: Platform) -> Result<()> {
    let named = named_compiler();
    let command = named.as_deref().unwrap_or("c++");
    let hint = platform.install_hint(Tool::Compiler);
    let child = compiler()
        .args(["-std=c++17", "-fsyntax-only", "-x", "c++", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match (child, named.is_some()) {
        (Ok(child), _) => child,
        (Err(error), true) => {
            bail!(
                "CXX={command} cannot be run ({error}): unset it, or install a C++ compiler: {hint}"
            )
        }
        (Err(_), false) => {
            bail!("no C++ compiler found (searched PATH for `c++`). To install one: {hint}")
        }
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A compiler that fails before it reads its input closes the pipe; its messages are reported below.
        let _ =
            stdin.write_all(b"#include <optional>\n#include <string>\nint main() { return 0; }\n");
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot run {command}"))?;
    if !output.status.success() {
        let messages = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{command}` cannot compile a C++17 program with the standard library:\n{}\nTo install a compiler that can: \
             {hint}",
            last_lines(&messages, 5)
        );
    }
    Ok(())
}

/// The last `count` lines of `text` that are not blank, indented.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let start = lines.len().saturating_sub(count);
    lines
        .iter()
        .skip(start)
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_recognised_by_its_family() {
        for (text, platform) in [
            ("ID=debian\n", Platform::Debian),
            (
                "NAME=\"Linux Mint\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n",
                Platform::Debian,
            ),
            (
                "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n",
                Platform::Fedora,
            ),
            ("ID=manjaro\nID_LIKE=arch\n", Platform::Arch),
            (
                "ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n",
                Platform::Suse,
            ),
            ("ID=alpine\n", Platform::Alpine),
            ("ID=nixos\n", Platform::Other),
            ("", Platform::Other),
        ] {
            assert_eq!(Platform::of_os_release(text), platform, "{text}");
        }
    }

    #[test]
    fn the_hint_for_a_missing_venv_on_debian_names_the_package() {
        let hint = Platform::Debian.install_hint(Tool::Venv);
        assert!(hint.contains("apt-get install python3-venv"), "{hint}");
    }

    #[test]
    fn the_driver_version_is_found_for_both_kernel_modules() {
        let proprietary = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n\
                           GCC version:  gcc version 12.2.0\n";
        let open =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build\n";
        assert_eq!(driver_version(proprietary).unwrap(), "535.104.05");
        assert_eq!(driver_version(open).unwrap(), "580.82.07");
        assert_eq!(driver_version("GCC version: 12.2.0"), None);
    }

    #[test]
    fn a_driver_too_old_for_cuda_13_causes_a_warning() {
        let warning = |version: &str| {
            Driver {
                version: Some(version.to_owned()),
            }
            .warning()
        };
        assert!(warning("535.104.05").unwrap().contains("580"));
        assert_eq!(warning("580.82.07"), None);
        assert_eq!(Driver { version: None }.warning(), None);
    }

    #[test]
    fn last_lines_skips_blank_ones() {
        assert_eq!(last_lines("a\n\nb\n\nc\n\n", 2), "    b\n    c");
        assert_eq!(last_lines("", 2), "");
    }
}
