//! Runs the program in a folder of its own with stand-ins for Python and the compiler: what is installed, what is
//! kept, what is refused, and what an interruption leaves.

#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Answers what the set-up asks of Python. `-m pip install` makes a `torch` folder with a header of `$VERSION`, and
/// appends its arguments to `pip.log`. `$PIP` makes it fail before or after it has written half of its files.
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

/// A workspace with nothing in it but what the set-up looks at.
struct Project {
    folder: TempDir,
}

impl Project {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let project = Self { folder };
        fs::create_dir_all(project.path("crates/xtask")).unwrap();
        fs::create_dir(project.path("tools")).unwrap();
        fs::write(project.path("Cargo.toml"), "[workspace]\n").unwrap();
        project.tool("python3", PYTHON);
        project.tool("c++", "#!/bin/sh\ncat > /dev/null\n");
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tool(&self, name: &str, script: &str) {
        let path = self.path("tools").join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// `cargo xtask ARGS`, with `tools` before the few programs that its scripts need.
    fn xtask(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("CARGO_MANIFEST_DIR", self.path("crates/xtask"))
            .env(
                "PATH",
                format!(
                    "{}:{}",
                    self.path("tools").display(),
                    self.path("programs").display()
                ),
            );
        for name in [
            "LIBTORCH",
            "LIBTORCH_USE_PYTORCH",
            "LIBTORCH_LIB",
            "LIBTORCH_INCLUDE",
            "PYTHON",
            "CXX",
        ] {
            command.env_remove(name);
        }
        let programs = self.path("programs");
        if !programs.exists() {
            fs::create_dir(&programs).unwrap();
            for name in ["sh", "cat", "cp", "dirname", "mkdir", "touch"] {
                let program = ["/usr/bin", "/bin"].map(|folder| Path::new(folder).join(name));
                let program = program.iter().find(|path| path.exists()).unwrap();
                symlink(program, programs.join(name)).unwrap();
            }
        }
        command
    }

    /// `cargo xtask setup --lean`: on a machine with a driver the default would be another.
    fn lean(&self) -> Command {
        self.xtask(&["setup", "--lean"])
    }

    fn installations(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("pip.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    fn is_linked(&self) -> bool {
        self.path(".libtorch/lib/libtorch_cpu.so").exists()
    }
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    said
}

fn fail(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{}", said(&output));
    said(&output)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_fresh_clone_gets_the_wheel_and_the_link_and_the_second_time_nothing() {
    let project = Project::new();
    let output = project.lean().output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(output.stdout.is_empty(), "pip's progress is not a result");
    assert!(said(&output).contains("Collecting torch"));
    assert!(project.is_linked());
    let target = fs::read_link(project.path(".libtorch")).unwrap();
    assert!(target.is_relative(), "{}", target.display());

    succeed(&mut project.lean());
    let installations = project.installations();
    assert_eq!(installations.len(), 1, "{installations:?}");
    assert!(installations[0].contains("--no-deps"));
}

#[test]
fn the_second_time_needs_neither_python_nor_a_compiler() {
    let project = Project::new();
    succeed(&mut project.lean());
    fs::remove_dir_all(project.path("tools")).unwrap();
    succeed(&mut project.lean());
}

#[test]
fn a_lean_installation_is_extended_to_a_full_one_and_not_back() {
    let project = Project::new();
    succeed(&mut project.lean());
    let said = succeed(&mut project.xtask(&["setup", "--full"]));
    assert!(said.contains("(full)"), "{said}");
    let installations = project.installations();
    assert_eq!(installations.len(), 2);
    assert!(!installations[1].contains("--no-deps"));

    let said = succeed(&mut project.lean());
    assert!(said.contains("remove .venv first"), "{said}");
    assert_eq!(project.installations().len(), 2);
}

#[test]
fn an_interrupted_installation_is_started_over() {
    let project = Project::new();
    fail(project.lean().env("PIP", "killed"));
    assert!(
        project
            .path(".venv/lib/python3.11/site-packages/torch")
            .exists()
    );
    let leftover = project.path(".venv/leftover");
    fs::write(&leftover, "").unwrap();

    succeed(&mut project.lean());
    assert!(project.is_linked());
    assert!(!leftover.exists());
}

#[test]
fn an_installation_with_a_file_missing_is_started_over() {
    let project = Project::new();
    succeed(&mut project.lean());
    fs::remove_file(project.path(".libtorch/lib/libtorch_cpu.so")).unwrap();
    succeed(&mut project.lean());
    assert!(project.is_linked());
}

#[test]
fn a_stale_link_is_replaced_without_installing_again() {
    let project = Project::new();
    succeed(&mut project.lean());
    fs::remove_file(project.path(".libtorch")).unwrap();
    symlink("/nowhere/torch", project.path(".libtorch")).unwrap();
    succeed(&mut project.lean());
    assert!(project.is_linked());
    assert_eq!(project.installations().len(), 1);
}

#[test]
fn python_packages_are_installed_again_when_their_list_changes() {
    let project = Project::new();
    let said = fail(&mut project.xtask(&["setup", "--python"]));
    assert!(
        said.contains("crates/encoders/python/requirements.txt"),
        "{said}"
    );

    let list = project.path("crates/encoders/python/requirements.txt");
    fs::create_dir_all(list.parent().unwrap()).unwrap();
    for text in ["numpy\n", "numpy\n", "numpy\ntimm\n"] {
        fs::write(&list, text).unwrap();
        succeed(&mut project.xtask(&["setup", "--python"]));
    }
    let installations = project.installations();
    assert_eq!(installations.len(), 2, "{installations:?}");
    assert!(installations[0].contains("--requirement"));
}

#[test]
fn a_venv_of_somebody_else_is_not_touched() {
    let project = Project::new();
    fs::create_dir(project.path(".venv")).unwrap();
    fs::write(project.path(".venv/pyvenv.cfg"), "").unwrap();
    let said = fail(&mut project.lean());
    assert!(said.contains("was not made by"), "{said}");
    assert!(project.path(".venv/pyvenv.cfg").exists());
}

#[test]
fn missing_tools_are_named() {
    let project = Project::new();
    fs::remove_file(project.path("tools/c++")).unwrap();
    assert!(fail(&mut project.lean()).contains("C++ compiler"));

    let project = Project::new();
    fs::remove_file(project.path("tools/python3")).unwrap();
    assert!(fail(&mut project.lean()).contains("there is no Python"));

    let project = Project::new();
    let said = fail(project.lean().env("VENV", "no"));
    assert!(said.contains("without venv or ensurepip"), "{said}");
    let said = fail(project.lean().env("PYTHON_VERSION", "3.8.1"));
    assert!(said.contains("Python 3.8.1"), "{said}");
    assert!(!project.path(".venv").exists());
}

#[test]
fn a_compiler_that_fails_is_quoted() {
    let project = Project::new();
    project.tool(
        "c++",
        "#!/bin/sh\necho 'fatal error: optional: No such file' >&2\nexit 1\n",
    );
    let said = fail(&mut project.lean());
    assert!(said.contains("optional: No such file"), "{said}");
}

#[test]
fn a_mode_that_is_asked_for_later_is_remembered() {
    let project = Project::new();
    succeed(&mut project.lean());
    let stamp = project.path(".venv/libtorch-setup");
    let text = fs::read_to_string(&stamp).unwrap();
    fs::write(&stamp, text.replace("choice asked", "choice found")).unwrap();
    succeed(&mut project.lean());
    assert_eq!(fs::read_to_string(&stamp).unwrap(), text);
    assert_eq!(project.installations().len(), 1);
}

#[test]
fn a_full_disk_is_noticed_before_the_download() {
    let project = Project::new();
    let said = fail(project.lean().env("FREE", "1000000"));
    assert!(said.contains("not enough disk space"), "{said}");
    assert!(project.installations().is_empty());
}

#[test]
fn a_failing_pip_is_quoted_with_what_helps() {
    let project = Project::new();
    let said = fail(project.lean().env("PIP", "unreachable"));
    assert!(said.contains("No matching distribution"), "{said}");
    assert!(said.contains("check the network"), "{said}");
    assert!(!project.is_linked());
}

#[test]
fn a_wheel_of_another_version_is_not_accepted() {
    let project = Project::new();
    let said = fail(project.lean().env("MINOR", "10"));
    assert!(said.contains("libtorch 2.10.0"), "{said}");
    assert!(!project.is_linked());
}

/// A libtorch that the user brings, of version 2.MINOR.
fn own_libtorch(project: &Project, minor: u32) -> PathBuf {
    let folder = project.path("own");
    fs::create_dir_all(folder.join("lib")).unwrap();
    fs::write(folder.join("lib/libtorch_cpu.so"), "").unwrap();
    fs::write(folder.join("build-version"), format!("2.{minor}.0+cpu\n")).unwrap();
    folder
}

#[test]
fn a_libtorch_of_ones_own_is_used_without_a_venv() {
    let project = Project::new();
    let own = own_libtorch(&project, 11);
    let said = succeed(project.xtask(&["setup"]).env("LIBTORCH", &own));
    assert!(said.contains("2.11.0+cpu"), "{said}");
    assert!(!project.path(".venv").exists());
    assert!(!project.path(".libtorch").exists());
}

#[test]
fn a_libtorch_of_ones_own_of_another_version_is_refused() {
    let project = Project::new();
    let own = own_libtorch(&project, 9);
    let said = fail(project.xtask(&["test"]).env("LIBTORCH", &own));
    for part in ["2.9.0", "needs libtorch 2.11", "cargo xtask setup"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}

#[test]
fn cargos_own_libtorch_variable_is_not_the_users() {
    let project = Project::new();
    let link = project.path(".libtorch");
    succeed(project.lean().env("LIBTORCH", &link));
    assert!(project.is_linked());
    assert_eq!(project.installations().len(), 1);
}

#[test]
fn a_link_made_by_hand_to_a_usable_libtorch_is_kept() {
    let project = Project::new();
    let own = own_libtorch(&project, 11);
    symlink(&own, project.path(".libtorch")).unwrap();
    succeed(&mut project.xtask(&["setup"]));
    assert_eq!(fs::read_link(project.path(".libtorch")).unwrap(), own);
    assert!(!project.path(".venv").exists());
}

#[test]
fn test_hands_over_to_cargo_with_its_arguments_and_exit_code() {
    let project = Project::new();
    succeed(&mut project.lean());
    project.tool(
        "cargo",
        "#!/bin/sh\necho \"$@\" \"libtorch=$LIBTORCH\"\nexit 7\n",
    );
    let output = project
        .xtask(&["test", "-p", "data", "--", "--nocapture"])
        .env("CARGO", project.path("tools/cargo"))
        .env("LIBTORCH", project.path(".libtorch"))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        printed.trim(),
        "test --workspace -p data -- --nocapture libtorch="
    );
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn sweep_hands_over_to_the_runner() {
    let project = Project::new();
    succeed(&mut project.lean());
    project.tool("cargo", "#!/bin/sh\necho \"$@\"\n");
    let output = project
        .xtask(&["sweep", "experiments/encoders.toml", "--out", "runs"])
        .env("CARGO", project.path("tools/cargo"))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        printed.trim(),
        "run --package irepa -- sweep experiments/encoders.toml --out runs"
    );
}
