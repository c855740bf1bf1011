//! Runs all tests of the workspace with `cargo test`, and lists all failures at the end.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::cargo::ready_cargo;
use crate::libtorch::Environment;
use crate::setup::Request;
use crate::stamp::Mode;

/// A group of tests with the same requirements. A test that needs more than the default set-up is `#[ignore]`d, in a
/// module that is named after the requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestGroup {
    /// The tests that need only the default set-up. Ignored tests are counted as skipped.
    Default,
    /// Only the ignored tests that need Python packages or the full wheel.
    Python,
    /// Only the ignored tests that need a CUDA device.
    Cuda,
}

/// Prefixes of the cargo options that select targets.
const TARGET_OPTIONS: [&str; 7] = [
    "--lib",
    "--bin",
    "--test",
    "--doc",
    "--example",
    "--bench",
    "--all-targets",
];

impl TestGroup {
    /// Names of the modules with the ignored tests of the group.
    fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Default => &[],
            Self::Python => &["needs_python", "needs_nvrtc"],
            Self::Cuda => &["needs_cuda"],
        }
    }

    fn request(self) -> Request {
        match self {
            Self::Default => Request::default(),
            Self::Python => Request {
                mode: Some(Mode::Full),
                python: true,
            },
            Self::Cuda => Request {
                mode: Some(Mode::Full),
                python: false,
            },
        }
    }

    /// The arguments of cargo for this group. `args` are the user's arguments: those of cargo and, after `--`, those of
    /// the test binaries.
    fn arguments(self, args: &[OsString]) -> Vec<OsString> {
        let split = args.iter().position(|arg| arg == "--");
        let (cargo_args, test_args) = args.split_at(split.unwrap_or(args.len()));
        let has_option = |options: &[&str]| {
            let mut texts = cargo_args.iter().filter_map(|arg| arg.to_str());
            texts.any(|arg| options.iter().any(|option| arg.starts_with(option)))
        };
        let mut arguments: Vec<OsString> = vec!["test".into()];
        // With `--workspace`, cargo would ignore the selected packages.
        if !has_option(&["-p", "--package"]) {
            arguments.push("--workspace".into());
        }
        arguments.push("--no-fail-fast".into());
        if self == Self::Default {
            arguments.extend_from_slice(args);
            return arguments;
        }
        // Documentation tests are excluded: none of them is in these groups, and they take long to build.
        if !has_option(&TARGET_OPTIONS) {
            arguments.push("--tests".into());
        }
        arguments.extend_from_slice(cargo_args);
        arguments.extend(["--", "--ignored"].map(OsString::from));
        arguments.extend(self.modules().iter().map(OsString::from));
        arguments.extend(test_args.iter().skip(1).cloned());
        arguments
    }
}

/// Runs the set-up that `group` needs, then its tests. All test binaries run, even if one fails. The failures are listed
/// at the end, and the last line counts the tests.
///
/// # Errors
/// The set-up fails, or cargo cannot be run.
pub fn test(
    root: &Path,
    environment: &Environment,
    group: TestGroup,
    args: &[OsString],
) -> Result<ExitCode> {
    let request = match environment.user_libtorch(root) {
        // With a libtorch of the user, nothing is installed; tests use the user's Python (`IREPA_PYTHON`).
        Some(_) => Request::default(),
        None => group.request(),
    };
    let mut cargo = ready_cargo(root, environment, request)?;
    cargo.args(group.arguments(args));
    // Tests run in parallel, each with the threads of libtorch. Threads that wait for work must not occupy the cores by
    // spinning.
    if env::var_os("OMP_WAIT_POLICY").is_none() {
        cargo.env("OMP_WAIT_POLICY", "passive");
    }
    if env::var_os("CARGO_TERM_COLOR").is_none() && io::stdout().is_terminal() {
        cargo.env("CARGO_TERM_COLOR", "always");
    }
    run_and_summarise(cargo)
}

fn run_and_summarise(mut cargo: Command) -> Result<ExitCode> {
    let program = cargo.get_program().to_owned();
    let name = || format!("cannot run {}", Path::new(&program).display());
    // Standard output and standard error share one pipe, so that each result follows the name of its binary, which cargo
    // writes to standard error.
    let (reader, writer) = io::pipe().with_context(name)?;
    let copy = writer.try_clone().with_context(name)?;
    let mut child = cargo
        .stdout(copy)
        .stderr(writer)
        .spawn()
        .with_context(name)?;
    // `cargo` owns the write ends of the pipe, which must be closed for the reader to reach the end.
    drop(cargo);

    let mut summary = Summary::default();
    let mut out = io::stdout();
    for line in BufReader::new(reader).split(b'\n') {
        let mut line = line.context("cannot read the output of cargo")?;
        summary.read(&without_colours(&String::from_utf8_lossy(&line)));
        line.push(b'\n');
        if out.write_all(&line).is_err() {
            // The reader of our output has closed it. Cargo ends when it finds its own pipe closed.
            break;
        }
    }
    let status = child.wait().with_context(name)?;
    summary.end(status.success());
    if summary.has_results() {
        let _ignored = writeln!(out, "\n{summary}");
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// The results of the tests, parsed from the output of cargo and the test binaries.
#[derive(Debug, Default)]
struct Summary {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// The failed tests, each with its binary.
    failures: Vec<String>,
    /// Binaries that printed no result: all of them with `--list`, otherwise those that were ended by a signal.
    without_result: Vec<String>,
    /// The current binary.
    binary: String,
    /// Whether the current binary has printed a result.
    has_result: bool,
    /// The most recent list of failures of the current binary.
    listed: Vec<String>,
    in_list: bool,
}

impl Summary {
    /// Parses a line of the output.
    fn read(&mut self, line: &str) {
        if let Some(binary) = binary(line) {
            self.end_of_binary();
            self.binary = binary;
        } else if line == "failures:" {
            // The first such list has the outputs of the failed tests, the second their names.
            self.listed.clear();
            self.in_list = true;
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.count(counts);
        } else if let Some(name) = line.strip_prefix("    ").filter(|_| self.in_list) {
            self.listed.push(name.to_owned());
        }
    }

    /// Parses `FAILED. 3 passed; 1 failed; 2 ignored; ...`.
    fn count(&mut self, counts: &str) {
        let number = |what: &str| {
            let (before, _) = counts.split_once(what)?;
            before.rsplit(' ').next()?.parse::<u64>().ok()
        };
        self.passed += number(" passed").unwrap_or(0);
        self.failed += number(" failed").unwrap_or(0);
        self.skipped += number(" ignored").unwrap_or(0);
        if counts.starts_with("FAILED") {
            let names = self.listed.iter();
            self.failures
                .extend(names.map(|name| format!("{}: {name}", self.binary)));
        }
        // The documentation tests of one crate may print two results.
        self.has_result = true;
        self.listed.clear();
        self.in_list = false;
    }

    fn end_of_binary(&mut self) {
        let binary = std::mem::take(&mut self.binary);
        if !binary.is_empty() && !self.has_result {
            self.without_result.push(binary);
        }
        self.has_result = false;
        self.listed.clear();
        self.in_list = false;
    }

    fn end(&mut self, succeeded: bool) {
        self.end_of_binary();
        if !succeeded {
            self.failed += self.without_result.len() as u64;
            let ended = self.without_result.drain(..);
            self.failures
                .extend(ended.map(|binary| format!("{binary}: ended without a result")));
        }
    }

    fn has_results(&self) -> bool {
        self.passed + self.failed + self.skipped > 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.failures.is_empty() {
            writeln!(f, "failed:")?;
            for failure in &self.failures {
                writeln!(f, "    {failure}")?;
            }
        }
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// The test binary that cargo starts according to this line: `resume (tests/resume.rs)` for
/// `     Running tests/resume.rs (target/debug/deps/resume-0123456789abcdef)`; or the crate whose documentation tests it
/// runs.
fn binary(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("documentation of {name}"));
    }
    let (source, file) = line.strip_prefix("Running ")?.split_once(" (")?;
    let file = file.strip_suffix(')')?;
    let stem = Path::new(file).file_name().and_then(OsStr::to_str)?;
    let stem = stem.rsplit_once('-').map_or(stem, |(name, _)| name);
    let source = source.strip_prefix("unittests ").unwrap_or(source);
    Some(format!("{stem} ({source})"))
}

/// Removes the escape sequences for terminal colours.
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line.trim_end_matches('\r');
    while let Some((before, sequence)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        let end = sequence.find(|c: char| c.is_ascii_alphabetic());
        rest = end.map_or("", |end| &sequence[end + 1..]);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\
   Compiling torch-ext v0.1.0 (/project/crates/torch-ext)
\u{1b}[1m\u{1b}[32m     Running\u{1b}[0m unittests src/lib.rs (target/debug/deps/torch_ext-0123456789abcdef)

running 3 tests
test cuda::graph::tests::gradients ... ok
test cuda::graph::tests::symbols ... FAILED
test needs_cuda::graph ... ignored, needs a CUDA device

failures:

---- cuda::graph::tests::symbols stdout ----
thread 'symbols' panicked at crates/torch-ext/src/cuda/graph.rs:12:
    not a name of a test

failures:
    cuda::graph::tests::symbols

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

error: test failed, to rerun pass `-p torch-ext --lib`
     Running tests/cuda.rs (target/debug/deps/cuda-0123456789abcdef)

running 1 test
error: test failed, to rerun pass `-p torch-ext --test cuda`

Caused by:
  process didn't exit successfully: `cuda-0123456789abcdef` (signal: 6, SIGABRT: process abort signal)
   Doc-tests data

running 2 tests
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s

running 1 test
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
error: 2 targets failed:
    `-p torch-ext --lib`
    `-p torch-ext --test cuda`
";

    fn summary(printed: &str, succeeded: bool) -> Summary {
        let mut summary = Summary::default();
        for line in printed.lines() {
            summary.read(&without_colours(line));
        }
        summary.end(succeeded);
        summary
    }

    fn joined(arguments: &[OsString]) -> String {
        arguments.join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn every_failure_is_listed_with_its_binary_and_the_tests_are_counted() {
        assert_eq!(
            summary(PRINTED, false).to_string(),
            "failed:\n    torch_ext (src/lib.rs): cuda::graph::tests::symbols\n    \
             cuda (tests/cuda.rs): ended without a result\n\
             4 passed, 2 failed, 1 skipped"
        );
    }

    #[test]
    fn without_failures_the_summary_is_only_the_counts() {
        let printed = "     Running tests/cuda.rs (target/debug/deps/cuda-0123456789abcdef)\n\
                       test result: ok. 5 passed; 0 failed; 3 ignored; 0 measured; 9 filtered out; finished in 1s\n";
        assert_eq!(
            summary(printed, true).to_string(),
            "5 passed, 0 failed, 3 skipped"
        );
    }

    #[test]
    fn the_output_of_list_has_no_results_and_no_failures() {
        let printed =
            "     Running tests/cuda.rs (target/debug/deps/cuda-0123456789abcdef)\na: test\n";
        let summary = summary(printed, true);
        assert!(!summary.has_results());
        assert!(summary.failures.is_empty());
    }

    #[test]
    fn a_group_runs_only_the_ignored_tests_of_its_modules() {
        let args = ["-p", "encoders", "--", "--nocapture"].map(OsString::from);
        assert_eq!(
            joined(&TestGroup::Default.arguments(&args)),
            "test --no-fail-fast -p encoders -- --nocapture"
        );
        assert_eq!(
            joined(&TestGroup::Python.arguments(&args)),
            "test --no-fail-fast --tests -p encoders -- --ignored needs_python needs_nvrtc --nocapture"
        );
        assert_eq!(
            joined(&TestGroup::Cuda.arguments(&[])),
            "test --workspace --no-fail-fast --tests -- --ignored needs_cuda"
        );
        let args = ["--test", "cuda"].map(OsString::from);
        assert_eq!(
            joined(&TestGroup::Cuda.arguments(&args)),
            "test --workspace --no-fail-fast --test cuda -- --ignored needs_cuda"
        );
    }
}
