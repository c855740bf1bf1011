//! `cargo test` over the workspace, to its end, with all failures listed once more after it.

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

/// What a pass over the tests may rely on. A test that needs more than the set-up that README asks for is
/// `#[ignore]`d, in a module that is named after what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// The lean set-up. Ignored tests are counted as skipped.
    Nothing,
    /// Python's packages and the whole wheel: the ignored tests that need those, and no others.
    Python,
    /// A CUDA device: the ignored tests that need one, and no others.
    Cuda,
}

/// Beginnings of cargo's options that choose targets.
const TARGETS: [&str; 7] = [
    "--lib",
    "--bin",
    "--test",
    "--doc",
    "--example",
    "--bench",
    "--all-targets",
];

impl Needs {
    /// Parts of the paths of the ignored tests that are to run.
    fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Nothing => &[],
            Self::Python => &["needs_python", "needs_nvrtc"],
            Self::Cuda => &["needs_cuda"],
        }
    }

    fn request(self) -> Request {
        match self {
            Self::Nothing => Request::default(),
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

    /// Arguments of cargo; `args` are the user's, of cargo and, after `--`, of the test binaries.
    fn arguments(self, args: &[OsString]) -> Vec<OsString> {
        let split = args.iter().position(|arg| arg == "--");
        let (of_cargo, of_tests) = args.split_at(split.unwrap_or(args.len()));
        let chosen = |flags: &[&str]| {
            let mut texts = of_cargo.iter().filter_map(|arg| arg.to_str());
            texts.any(|arg| flags.iter().any(|flag| arg.starts_with(flag)))
        };
        let mut words: Vec<OsString> = vec!["test".into()];
        // Cargo would take no notice of the packages.
        if !chosen(&["-p", "--package"]) {
            words.push("--workspace".into());
        }
        words.push("--no-fail-fast".into());
        if self == Self::Nothing {
            words.extend_from_slice(args);
            return words;
        }
        // Examples in documentation need nothing, and take long to build.
        if !chosen(&TARGETS) {
            words.push("--tests".into());
        }
        words.extend_from_slice(of_cargo);
        words.extend(["--", "--ignored"].map(OsString::from));
        words.extend(self.modules().iter().map(OsString::from));
        words.extend(of_tests.iter().skip(1).cloned());
        words
    }
}

/// Sets up what `needs` says and runs the tests that it is enough for. A test binary that fails does not keep the
/// next from running. What failed is listed at the end, and the last line counts the tests.
///
/// # Errors
/// The set-up cannot be done, or cargo cannot be run.
pub fn test(
    root: &Path,
    environment: &Environment,
    needs: Needs,
    args: &[OsString],
) -> Result<ExitCode> {
    let request = match environment.own(root) {
        // The user's libtorch comes with the user's Python (`IREPA_PYTHON`), and nothing is installed.
        Some(_) => Request::default(),
        None => needs.request(),
    };
    let mut cargo = ready_cargo(root, environment, request)?;
    cargo.args(needs.arguments(args));
    // Tests run side by side, each with libtorch's threads: those that wait for work must not keep a core
    // from the others by spinning.
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
    // One pipe for both, so that a result follows the name of its binary, which cargo writes to standard error.
    let (reader, writer) = io::pipe().with_context(name)?;
    let copy = writer.try_clone().with_context(name)?;
    let mut child = cargo
        .stdout(copy)
        .stderr(writer)
        .spawn()
        .with_context(name)?;
    // It holds the writing ends, and reading would not end.
    drop(cargo);

    let mut summary = Summary::default();
    let mut out = io::stdout();
    for line in BufReader::new(reader).split(b'\n') {
        let mut line = line.context("cannot read what cargo says")?;
        summary.read(&without_colours(&String::from_utf8_lossy(&line)));
        line.push(b'\n');
        if out.write_all(&line).is_err() {
            // Nobody reads. Cargo ends by itself when it finds its own pipe closed.
            break;
        }
    }
    let status = child.wait().with_context(name)?;
    summary.end(status.success());
    if summary.has_results() {
        let _unread = writeln!(out, "\n{summary}");
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// What came of the tests, read from what cargo and the test binaries print.
#[derive(Debug, Default)]
struct Summary {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Each with its binary.
    failures: Vec<String>,
    /// Binaries that gave no result: all of them under `--list`, else those that a signal ended.
    without_result: Vec<String>,
    binary: String,
    has_result: bool,
    /// The last list of failures that the binary gave.
    listed: Vec<String>,
    in_list: bool,
}

impl Summary {
    fn read(&mut self, line: &str) {
        if let Some(binary) = binary(line) {
            self.end_of_binary();
            self.binary = binary;
        } else if line == "failures:" {
            // The first such list is of outputs, the second of names.
            self.listed.clear();
            self.in_list = true;
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.count(counts);
        } else if let Some(name) = line.strip_prefix("    ").filter(|_| self.in_list) {
            self.listed.push(name.to_owned());
        }
    }

    /// Reads `FAILED. 3 passed; 1 failed; 2 ignored; ...`.
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
        // The examples of one crate may come with two results.
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

/// The test binary that cargo says it starts: `resume (tests/resume.rs)` for
/// `     Running tests/resume.rs (target/debug/deps/resume-0123456789abcdef)`; or the crate whose examples it runs.
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

/// Takes away the sequences that colour a terminal.
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

    fn words(arguments: &[OsString]) -> String {
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
    fn without_failures_there_is_the_count_alone() {
        let printed = "     Running tests/cuda.rs (target/debug/deps/cuda-0123456789abcdef)\n\
                       test result: ok. 5 passed; 0 failed; 3 ignored; 0 measured; 9 filtered out; finished in 1s\n";
        assert_eq!(
            summary(printed, true).to_string(),
            "5 passed, 0 failed, 3 skipped"
        );
    }

    #[test]
    fn a_list_of_tests_has_no_results_and_no_failures() {
        let printed =
            "     Running tests/cuda.rs (target/debug/deps/cuda-0123456789abcdef)\na: test\n";
        let summary = summary(printed, true);
        assert!(!summary.has_results());
        assert!(summary.failures.is_empty());
    }

    #[test]
    fn a_pass_for_python_takes_the_ignored_tests_that_need_it() {
        let args = ["-p", "encoders", "--", "--nocapture"].map(OsString::from);
        assert_eq!(
            words(&Needs::Nothing.arguments(&args)),
            "test --no-fail-fast -p encoders -- --nocapture"
        );
        assert_eq!(
            words(&Needs::Python.arguments(&args)),
            "test --no-fail-fast --tests -p encoders -- --ignored needs_python needs_nvrtc --nocapture"
        );
        assert_eq!(
            words(&Needs::Cuda.arguments(&[])),
            "test --workspace --no-fail-fast --tests -- --ignored needs_cuda"
        );
        let args = ["--test", "cuda"].map(OsString::from);
        assert_eq!(
            words(&Needs::Cuda.arguments(&args)),
            "test --workspace --no-fail-fast --test cuda -- --ignored needs_cuda"
        );
    }
}
