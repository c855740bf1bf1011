//! Runs the program in a temporary folder with stand-ins for Python and the compiler. The tests check what is installed,
//! kept and refused, and the state after an interruption.

#![cfg(target_os = "linux")]

mod project;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use project::{Project, fail, stderr_of, succeed, user_libtorch};

/// `cargo xtask ARGS`.
fn xtask(project: &Project, args: &[&str]) -> Command {
    project.run(env!("CARGO_BIN_EXE_xtask"), "xtask", args)
}

/// `cargo xtask setup --lean`. The mode is explicit, because the default is another on a machine with an NVIDIA driver.
fn lean(project: &Project) -> Command {
    xtask(project, &["setup", "--lean"])
}

#[test]
fn the_first_set_up_installs_the_wheel_and_the_link_and_the_second_nothing() {
    let project = Project::new();
    let output = lean(&project).output().unwrap();
    assert!(output.status.success(), "{}", stderr_of(&output));
    assert!(
        output.stdout.is_empty(),
        "standard output has the progress of pip"
    );
    assert!(stderr_of(&output).contains("Collecting torch"));
    assert!(project.is_linked());
    let target = fs::read_link(project.path(".libtorch")).unwrap();
    assert!(target.is_relative(), "{}", target.display());

    succeed(&mut lean(&project));
    let installations = project.installations();
    assert_eq!(installations.len(), 1, "{installations:?}");
    assert!(installations[0].contains("--no-deps"));
}

#[test]
fn the_second_set_up_needs_neither_python_nor_a_compiler() {
    let project = Project::new();
    succeed(&mut lean(&project));
    fs::remove_dir_all(project.path("tools")).unwrap();
    succeed(&mut lean(&project));
}

#[test]
fn a_lean_installation_is_extended_to_a_full_one_that_is_not_reduced() {
    let project = Project::new();
    succeed(&mut lean(&project));
    let stderr = succeed(&mut xtask(&project, &["setup", "--full"]));
    assert!(stderr.contains("(full)"), "{stderr}");
    let installations = project.installations();
    assert_eq!(installations.len(), 2);
    assert!(!installations[1].contains("--no-deps"));

    let stderr = succeed(&mut lean(&project));
    assert!(stderr.contains("remove .venv first"), "{stderr}");
    assert_eq!(project.installations().len(), 2);
}

#[test]
fn an_interrupted_installation_is_started_over() {
    let project = Project::new();
    fail(lean(&project).env("PIP", "killed"));
    assert!(
        project
            .path(".venv/lib/python3.11/site-packages/torch")
            .exists()
    );
    let leftover = project.path(".venv/leftover");
    fs::write(&leftover, "").unwrap();

    succeed(&mut lean(&project));
    assert!(project.is_linked());
    assert!(!leftover.exists());
}

#[test]
fn an_installation_with_a_file_missing_is_started_over() {
    let project = Project::new();
    succeed(&mut lean(&project));
    fs::remove_file(project.path(".libtorch/lib/libtorch_cpu.so")).unwrap();
    succeed(&mut lean(&project));
    assert!(project.is_linked());
}

#[test]
fn a_stale_link_is_replaced_without_installing_again() {
    let project = Project::new();
    succeed(&mut lean(&project));
    fs::remove_file(project.path(".libtorch")).unwrap();
    symlink("/nowhere/torch", project.path(".libtorch")).unwrap();
    succeed(&mut lean(&project));
    assert!(project.is_linked());
    assert_eq!(project.installations().len(), 1);
}

#[test]
fn python_packages_are_installed_again_when_their_list_changes() {
    let project = Project::new();
    let stderr = fail(&mut xtask(&project, &["setup", "--python"]));
    assert!(
        stderr.contains("crates/encoders/python/requirements.txt"),
        "{stderr}"
    );

    let list = project.path("crates/encoders/python/requirements.txt");
    fs::create_dir_all(list.parent().unwrap()).unwrap();
    for text in ["numpy\n", "numpy\n", "numpy\ntimm\n"] {
        fs::write(&list, text).unwrap();
        succeed(&mut xtask(&project, &["setup", "--python"]));
    }
    let installations = project.installations();
    assert_eq!(installations.len(), 2, "{installations:?}");
    assert!(installations[0].contains("--requirement"));
}

#[test]
fn a_foreign_venv_is_not_changed() {
    let project = Project::new();
    fs::create_dir(project.path(".venv")).unwrap();
    fs::write(project.path(".venv/pyvenv.cfg"), "").unwrap();
    let stderr = fail(&mut lean(&project));
    assert!(stderr.contains("was not created by"), "{stderr}");
    assert!(project.path(".venv/pyvenv.cfg").exists());
}

#[test]
fn missing_tools_are_named() {
    let project = Project::new();
    fs::remove_file(project.path("tools/c++")).unwrap();
    assert!(fail(&mut lean(&project)).contains("C++ compiler"));

    let project = Project::new();
    fs::remove_file(project.path("tools/python3")).unwrap();
    assert!(fail(&mut lean(&project)).contains("no Python found"));

    let project = Project::new();
    let stderr = fail(lean(&project).env("VENV", "no"));
    assert!(stderr.contains("without venv or ensurepip"), "{stderr}");
    let stderr = fail(lean(&project).env("PYTHON_VERSION", "3.8.1"));
    assert!(stderr.contains("Python 3.8.1"), "{stderr}");
    assert!(!project.path(".venv").exists());
}

#[test]
fn the_messages_of_a_failing_compiler_are_quoted() {
    let project = Project::new();
    project.tool(
        "c++",
        "#!/bin/sh\necho 'fatal error: optional: No such file' >&2\nexit 1\n",
    );
    let stderr = fail(&mut lean(&project));
    assert!(stderr.contains("optional: No such file"), "{stderr}");
}

#[test]
fn a_mode_that_is_requested_later_is_recorded() {
    let project = Project::new();
    succeed(&mut lean(&project));
    let stamp = project.path(".venv/libtorch-setup");
    let text = fs::read_to_string(&stamp).unwrap();
    fs::write(&stamp, text.replace("choice asked", "choice found")).unwrap();
    succeed(&mut lean(&project));
    assert_eq!(fs::read_to_string(&stamp).unwrap(), text);
    assert_eq!(project.installations().len(), 1);
}

#[test]
fn a_full_disk_is_detected_before_the_download() {
    let project = Project::new();
    let stderr = fail(lean(&project).env("FREE", "1000000"));
    assert!(stderr.contains("not enough disk space"), "{stderr}");
    assert!(project.installations().is_empty());
}

#[test]
fn the_messages_of_a_failing_pip_are_quoted_with_a_hint() {
    let project = Project::new();
    let stderr = fail(lean(&project).env("PIP", "unreachable"));
    assert!(stderr.contains("No matching distribution"), "{stderr}");
    assert!(stderr.contains("check the network"), "{stderr}");
    assert!(!project.is_linked());
}

#[test]
fn a_wheel_of_another_version_is_not_accepted() {
    let project = Project::new();
    let stderr = fail(lean(&project).env("MINOR", "10"));
    assert!(stderr.contains("libtorch 2.10.0"), "{stderr}");
    assert!(!project.is_linked());
}

#[test]
fn a_libtorch_of_the_user_is_used_without_a_venv() {
    let project = Project::new();
    let libtorch = user_libtorch(&project, 11);
    let stderr = succeed(xtask(&project, &["setup"]).env("LIBTORCH", &libtorch));
    assert!(stderr.contains("2.11.0+cpu"), "{stderr}");
    assert!(!project.path(".venv").exists());
    assert!(!project.path(".libtorch").exists());
}

#[test]
fn a_libtorch_of_the_user_with_another_version_is_refused() {
    let project = Project::new();
    let libtorch = user_libtorch(&project, 9);
    let stderr = fail(xtask(&project, &["test"]).env("LIBTORCH", &libtorch));
    for part in ["2.9.0", "needs libtorch 2.11", "cargo xtask setup"] {
        assert!(stderr.contains(part), "{part} is not in: {stderr}");
    }
}

#[test]
fn the_libtorch_variable_that_cargo_sets_is_not_a_choice_of_the_user() {
    let project = Project::new();
    let link = project.path(".libtorch");
    succeed(lean(&project).env("LIBTORCH", &link));
    assert!(project.is_linked());
    assert_eq!(project.installations().len(), 1);
}

#[test]
fn a_manual_link_to_a_usable_libtorch_is_kept() {
    let project = Project::new();
    let libtorch = user_libtorch(&project, 11);
    symlink(&libtorch, project.path(".libtorch")).unwrap();
    succeed(&mut xtask(&project, &["setup"]));
    assert_eq!(fs::read_link(project.path(".libtorch")).unwrap(), libtorch);
    assert!(!project.path(".venv").exists());
}

/// A stand-in for cargo that prints messages of cargo (on standard error) and of libtest (on standard output).
const FAILING_CARGO: &str = r#"#!/bin/sh
echo "$@" "libtorch=$LIBTORCH"
echo "     Running unittests src/lib.rs (target/debug/deps/torch_ext-0123)" >&2
echo "failures:"
echo "    graph::symbols"
echo "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out"
echo "     Running tests/cuda.rs (target/debug/deps/cuda-0123)" >&2
echo "   Doc-tests data" >&2
echo "test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"
exit 7
"#;

#[test]
fn test_continues_after_failures_lists_them_at_the_end_and_returns_the_exit_code() {
    let project = Project::new();
    succeed(&mut lean(&project));
    project.tool("cargo", FAILING_CARGO);
    let output = xtask(&project, &["test", "-p", "data", "--", "--nocapture"])
        .env("CARGO", project.path("tools/cargo"))
        .env("LIBTORCH", project.path(".libtorch"))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(
        lines[0],
        "test --no-fail-fast -p data -- --nocapture libtorch="
    );
    assert_eq!(
        lines[lines.len() - 4..],
        [
            "failed:",
            "    torch_ext (src/lib.rs): graph::symbols",
            "    cuda (tests/cuda.rs): ended without a result",
            "7 passed, 2 failed, 2 skipped",
        ]
    );
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn test_with_python_runs_the_set_up_of_python_first() {
    let project = Project::new();
    succeed(&mut lean(&project));
    let list = project.path("crates/encoders/python/requirements.txt");
    fs::create_dir_all(list.parent().unwrap()).unwrap();
    fs::write(&list, "numpy\n").unwrap();
    project.tool("cargo", "#!/bin/sh\necho \"$@\"\n");
    let output = xtask(&project, &["test", "--python", "-p", "encoders"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr_of(&output));
    assert_eq!(project.installations().len(), 2);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        printed.contains("-p encoders -- --ignored needs_python"),
        "{printed}"
    );
}

/// A stand-in for the compiler that creates the file after `-o`.
const COMPILER: &str = r#"#!/bin/sh
out=
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then out=$2; fi
    shift
done
if [ -n "$out" ]; then echo plugin > "$out"; else cat > /dev/null; fi
"#;

#[test]
fn nccl_adds_headers_to_the_full_installation_and_names_those_that_are_still_missing() {
    let project = Project::new();
    project.tool("c++", COMPILER);
    let stderr = fail(&mut xtask(&project, &["nccl"]));
    for part in ["nv/target", "nccl.h (Python package nvidia-nccl-cu13)"] {
        assert!(stderr.contains(part), "{part} is not in: {stderr}");
    }
    let installations = project.installations();
    assert_eq!(installations.len(), 2, "{installations:?}");
    assert!(!installations[0].contains("--no-deps"));
    assert!(
        installations[1].contains("--no-deps nvidia-cuda-crt==13.0.* nvidia-cuda-cccl==13.0.*")
    );

    for header in [
        "cu13/include/cuda_runtime_api.h",
        "cu13/include/cublasLt.h",
        "cu13/include/cusparse.h",
        "cu13/include/cusolverDn.h",
        "cu13/include/crt/host_defines.h",
        "cu13/include/cccl/nv/target",
        "nccl/include/nccl.h",
    ] {
        let path = project
            .path(".venv/lib/python3.11/site-packages/nvidia")
            .join(header);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    succeed(&mut xtask(&project, &["nccl"]));
    assert_eq!(project.installations().len(), 2);
    let plugin = project.path(".libtorch/lib/libtorch_ext_nccl.so");
    assert_eq!(fs::read_to_string(plugin).unwrap(), "plugin\n");

    let unwritable = project.path("absent/other.so");
    let stderr = fail(&mut xtask(
        &project,
        &["nccl", "--out", unwritable.to_str().unwrap()],
    ));
    assert!(stderr.contains("name another file with --out"), "{stderr}");

    project.tool(
        "c++",
        "#!/bin/sh\ncase \"$*\" in *' -o '*) echo 'error: no such type' >&2; exit 1 ;; esac\ncat > /dev/null\n",
    );
    let out = project.path("other.so");
    let stderr = fail(&mut xtask(
        &project,
        &["nccl", "--out", out.to_str().unwrap()],
    ));
    assert!(
        stderr.contains("nccl_plugin.cpp does not compile"),
        "{stderr}"
    );
    assert!(stderr.contains("no such type"), "{stderr}");
    assert!(!out.exists());
}

#[test]
fn a_closed_output_pipe_does_not_cause_a_panic() {
    let project = Project::new();
    succeed(&mut lean(&project));
    project.tool("cargo", FAILING_CARGO);
    let mut child = xtask(&project, &["test"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_ne!(output.status.code(), Some(101), "{}", stderr_of(&output));
}
