//! A workspace with stand-ins for tools: a Python whose pip creates an empty `torch` folder, and a C++ compiler that
//! accepts everything.

// The tests of two packages use this module, and neither uses all of it.
#![allow(dead_code)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A stand-in for the Python that the set-up calls. `-m pip install` creates a `torch` folder with a version header for
/// version `2.$MINOR.0`, and appends its arguments to `pip.log`. `PIP=unreachable` makes it fail before it writes files,
/// `PIP=killed` when only some are written.
const PYTHON: &str = r#"#!/bin/sh
case "$1 $2 $3" in
"-m venv "*)
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
    ;;
"-m pip --version") ;;
"-m pip install")
    echo "$@" >> pip.log
    echo "Collecting torch"
    torch="$(dirname "$(dirname "$0")")/lib/python3.11/site-packages/torch"
    case "$PIP" in
    unreachable)
        echo "WARNING: Retrying after NewConnectionError" >&2
        echo "ERROR: No matching distribution found for torch" >&2
        exit 1
        ;;
    killed)
        mkdir -p "$torch/lib"
        kill -9 $PPID
        exit 1
        ;;
    esac
    mkdir -p "$torch/lib" "$torch/include/torch/headeronly"
    touch "$torch/lib/libtorch_cpu.so"
    printf '#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR %s\n#define TORCH_VERSION_PATCH 0\n' \
        "${MINOR:-11}" > "$torch/include/torch/headeronly/version.h"
    ;;
"-c "*)
    case "$2" in
    *platlib*) echo "$(dirname "$(dirname "$0")")/lib/python3.11/site-packages" ;;
    *ctypes*) ;;
    *)
        echo "version=${PYTHON_VERSION:-3.11.7}"
        echo "implementation=CPython"
        echo "venv=${VENV:-yes}"
        echo "free=${FREE:-100000000000}"
        echo "free_temporary=100000000000"
        echo "temporary=/tmp"
        echo "same_disk=no"
        ;;
    esac
    ;;
*) exit 1 ;;
esac
"#;

/// A workspace that has only the files that the set-up uses.
pub struct Project {
    folder: TempDir,
}

impl Project {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let project = Self { folder };
        fs::create_dir_all(project.path("crates/xtask")).unwrap();
        fs::create_dir(project.path("tools")).unwrap();
        fs::write(project.path("Cargo.toml"), "[workspace]\n").unwrap();
        let programs = project.path("programs");
        fs::create_dir(&programs).unwrap();
        for name in ["sh", "cat", "cp", "dirname", "mkdir", "touch"] {
            let program = ["/usr/bin", "/bin"].map(|folder| Path::new(folder).join(name));
            let program = program.iter().find(|path| path.exists()).unwrap();
            symlink(program, programs.join(name)).unwrap();
        }
        project.tool("python3", PYTHON);
        project.tool("c++", "#!/bin/sh\ncat > /dev/null\n");
        project
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Creates a program that is found before any other of that name.
    pub fn tool(&self, name: &str, script: &str) {
        // The file is written by another process. If this process had it open for writing while another test started a
        // program, running it could fail with "text file busy".
        let mut shell = Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
            .arg(self.path("tools").join(name))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let written = shell.stdin.take().unwrap().write_all(script.as_bytes());
        written.unwrap();
        assert!(shell.wait().unwrap().success());
    }

    /// A command that runs `program` as cargo does for `package`. `PATH` has `tools`, then the few programs that the
    /// scripts need.
    pub fn run(&self, program: impl AsRef<Path>, package: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("CARGO_MANIFEST_DIR", self.path("crates").join(package))
            .env(
                "PATH",
                format!(
                    "{}:{}",
                    self.path("tools").display(),
                    self.path("programs").display()
                ),
            );
        for name in [
            "CARGO",
            "LIBTORCH",
            "LIBTORCH_USE_PYTORCH",
            "LIBTORCH_LIB",
            "LIBTORCH_INCLUDE",
            "PYTHON",
            "CXX",
        ] {
            command.env_remove(name);
        }
        command
    }

    /// The arguments of each run of pip.
    pub fn installations(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("pip.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Whether `.libtorch` links to a folder with the library.
    pub fn is_linked(&self) -> bool {
        self.path(".libtorch/lib/libtorch_cpu.so").exists()
    }
}

pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = stderr_of(&output);
    assert!(output.status.success(), "{stderr}");
    stderr
}

pub fn fail(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{}", stderr_of(&output));
    stderr_of(&output)
}

pub fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Creates a libtorch of the user with version `2.MINOR.0`.
pub fn user_libtorch(project: &Project, minor: u32) -> PathBuf {
    let folder = project.path("own");
    fs::create_dir_all(folder.join("lib")).unwrap();
    fs::write(folder.join("lib/libtorch_cpu.so"), "").unwrap();
    fs::write(folder.join("build-version"), format!("2.{minor}.0+cpu\n")).unwrap();
    folder
}
