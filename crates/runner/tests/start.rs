//! Runs the program in a temporary folder with stand-ins for cargo, Python, the compiler and `irepa`. The tests check
//! the steps before `irepa` runs, and that `irepa` replaces the process.

#![cfg(target_os = "linux")]

#[path = "../../xtask/tests/project/mod.rs"]
mod project;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use project::{Project, fail, stderr_of, succeed, user_libtorch};

/// Appends its arguments and `LIBTORCH` to `cargo.log`. Makes `irepa` a copy of the shell, so that the arguments of a test
/// define what `irepa` does.
const CARGO: &str = r#"#!/bin/sh
echo "$@" "libtorch=$LIBTORCH" >> cargo.log
echo "   Compiling irepa" >&2
test -e target/debug/irepa || cp -L programs/sh target/debug/irepa
"#;

/// A project with this program in the output folder of cargo.
fn project() -> Project {
    let project = Project::new();
    fs::create_dir_all(project.path("target/debug")).unwrap();
    // Copied by another process, for the same reason as in `Project::tool`.
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_runner"))
        .arg(project.path("target/debug/runner"))
        .status();
    assert!(copied.unwrap().success());
    project.tool("cargo", CARGO);
    project
}

/// `cargo run -p runner -- ARGS`.
fn runner(project: &Project, args: &[&str]) -> Command {
    project.run(project.path("target/debug/runner"), "runner", args)
}

fn builds(project: &Project) -> Vec<String> {
    let log = fs::read_to_string(project.path("cargo.log")).unwrap_or_default();
    log.lines().map(str::to_owned).collect()
}

#[test]
fn the_first_run_sets_up_builds_and_runs_and_the_second_needs_no_set_up() {
    let project = project();
    for start in 1..=2 {
        let output = runner(
            &project,
            &["-c", "echo \"$0\" \"$@\"", "sweep", "a b", "--fresh"],
        )
        .output()
        .unwrap();
        assert!(output.status.success(), "{}", stderr_of(&output));
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "sweep a b --fresh\n",
            "standard output has only the results"
        );
        assert!(project.is_linked());
        assert_eq!(stderr_of(&output).contains("Collecting torch"), start == 1);
        assert_eq!(project.installations().len(), 1);
        let builds = builds(&project);
        assert_eq!(builds.len(), start);
        let folder = project.path("target");
        assert_eq!(
            builds[start - 1],
            format!(
                "build --package irepa --profile dev --target-dir {} libtorch=",
                folder.display()
            )
        );
    }
    fs::remove_file(project.path("tools/python3")).unwrap();
    fs::remove_file(project.path("tools/c++")).unwrap();
    succeed(&mut runner(&project, &["-c", "exit 0"]));
}

#[test]
fn the_exit_code_is_that_of_the_program() {
    let project = project();
    for code in [0, 1, 2, 101, 130, 255] {
        let output = runner(&project, &["-c", &format!("exit {code}")]).output();
        assert_eq!(output.unwrap().status.code(), Some(code));
    }
}

#[test]
fn the_program_replaces_the_process() {
    let project = project();
    let mut child = runner(&project, &["-c", "echo $$; read line; exit 9"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line.trim(), child.id().to_string());
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(9));

    // A signal reaches the program, which is ended by it or handles it.
    let ended = runner(&project, &["-c", "kill -TERM $$; sleep 60"]).output();
    assert_eq!(ended.unwrap().status.signal(), Some(15));
    let handled = runner(
        &project,
        &["-c", "trap 'exit 130' TERM; kill -TERM $$; exit 1"],
    )
    .output();
    assert_eq!(handled.unwrap().status.code(), Some(130));
}

#[test]
fn the_program_keeps_the_name_that_was_typed() {
    let project = project();
    let output = runner(&project, &["-c", "echo \"$0\""]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        Path::new(printed.trim()).file_name().unwrap(),
        "runner",
        "{printed}"
    );
}

#[test]
fn the_error_of_a_missing_tool_is_one_line() {
    let project = project();
    fs::remove_file(project.path("tools/python3")).unwrap();
    let output = runner(&project, &["sweep", "experiments/encoders.toml"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = stderr_of(&output);
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in [
        "libtorch 2.11.0",
        "no Python found",
        "3.10 to 3.14",
        "LIBTORCH",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert!(builds(&project).is_empty());
}

#[test]
fn without_a_network_the_last_line_says_so() {
    let project = project();
    let text = fail(runner(&project, &["doctor"]).env("PIP", "unreachable"));
    let last = text.lines().last().unwrap();
    for part in [
        "error: cannot install libtorch",
        "package index could not be reached",
        "network",
    ] {
        assert!(last.contains(part), "{part} is not in: {text}");
    }
    assert!(builds(&project).is_empty());
}

#[test]
fn a_libtorch_of_the_user_is_used_and_nothing_is_installed() {
    let project = project();
    let libtorch = user_libtorch(&project, 11);
    succeed(runner(&project, &["-c", "exit 0"]).env("LIBTORCH", &libtorch));
    assert!(!project.path(".venv").exists());
    let builds = builds(&project);
    assert!(
        builds[0].ends_with(&format!("libtorch={}", libtorch.display())),
        "{builds:?}"
    );

    let libtorch = user_libtorch(&project, 9);
    let text = fail(runner(&project, &["-c", "exit 0"]).env("LIBTORCH", &libtorch));
    assert!(text.contains("needs libtorch 2.11"), "{text}");
}

#[test]
fn a_failed_build_is_reported() {
    let project = project();
    project.tool(
        "cargo",
        "#!/bin/sh\necho 'error[E0308]: mismatched' >&2\nexit 101\n",
    );
    let output = runner(&project, &["sweep"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr_of(&output).contains("could not be built"),
        "{}",
        stderr_of(&output)
    );
}

#[test]
fn it_runs_from_another_folder() {
    let project = project();
    fs::create_dir(project.path("elsewhere")).unwrap();
    symlink(project.path("programs"), project.path("elsewhere/programs")).unwrap();
    let output = runner(&project, &["-c", "pwd"])
        .current_dir(project.path("elsewhere"))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.trim().ends_with("/elsewhere"), "{printed}");
    // Cargo ran in the folder of the workspace, where its configuration is.
    assert_eq!(builds(&project).len(), 1);
}

/// Otherwise cargo would compile the bindings of libtorch before the set-up.
#[test]
fn no_dependency_needs_libtorch() {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock");
    let lock: toml::Table = fs::read_to_string(lock).unwrap().parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    let mut found = BTreeSet::new();
    let mut next = vec!["runner".to_owned()];
    while let Some(name) = next.pop() {
        if !found.insert(name.clone()) {
            continue;
        }
        for package in packages
            .iter()
            .filter(|p| p["name"].as_str() == Some(&name))
        {
            let needs = package.get("dependencies").and_then(|d| d.as_array());
            // An entry is `name`, or `name version` if there are several versions.
            let names = needs.into_iter().flatten().filter_map(|d| d.as_str());
            next.extend(names.filter_map(|d| d.split(' ').next()).map(str::to_owned));
        }
    }
    assert!(found.contains("xtask") && found.contains("anyhow"));
    for package in ["torch-sys", "tch", "torch-ext", "irepa"] {
        assert!(!found.contains(package), "{package}");
    }
}
