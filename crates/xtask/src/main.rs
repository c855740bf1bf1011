//! `cargo xtask COMMAND`: set-up and project chores.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use xtask::{Environment, Mode, Needs, REQUIREMENTS, Request, hand_over, say};

/// Folder of the Python package `export`, relative to the workspace.
const EXPORTER: &str = "crates/encoders/python";

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Set-up and project chores",
    after_help = "Example: cargo xtask test"
)]
struct Cli {
    #[command(subcommand)]
    command: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install libtorch into .venv and link .libtorch to it.
    ///
    /// Does nothing when that is done already, or when LIBTORCH names a libtorch of your own.
    #[command(after_help = "Example: cargo xtask setup --python")]
    Setup(SetupArgs),
    /// Set up if needed, then run the tests of the workspace: `cargo test --workspace --no-fail-fast ARGS`.
    ///
    /// All failures are listed once more at the end. Tests that need more than the set-up are skipped; --python and
    /// --cuda run those.
    #[command(
        after_help = "Examples:\n  cargo xtask test spatial_norm\n  cargo xtask test --python -p encoders"
    )]
    Test(TestArgs),
    /// Set up Python if needed, then make encoder files: `python -m export ARGS`.
    ///
    /// `cargo xtask export -- --help` lists the arguments.
    #[command(after_help = "Example: cargo xtask export dinov2-vit-b clip-vit-L --out pretrained")]
    Export(Passed),
}

#[derive(Args)]
struct SetupArgs {
    /// Only what Rust needs (0.5 GB to download, 1.2 GB on disk). CUDA and Python's `import torch` need more.
    #[arg(long, conflicts_with_all = ["full", "python"])]
    lean: bool,
    /// With all CUDA libraries (2.7 GB to download, 5 GB on disk). The default where an NVIDIA driver is found.
    #[arg(long)]
    full: bool,
    /// Also what the encoder exporters and the comparisons with Python need. Implies --full.
    #[arg(long)]
    python: bool,
}

#[derive(Args)]
struct TestArgs {
    /// Set up Python too, and run the tests that need its packages or the whole wheel, and no others.
    #[arg(long)]
    python: bool,
    /// Run the tests that need a CUDA device, and no others.
    #[arg(long, conflicts_with = "python")]
    cuda: bool,
    #[command(flatten)]
    passed: Passed,
}

#[derive(Args)]
struct Passed {
    /// Arguments handed on as they are.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    args: Vec<OsString>,
}

impl SetupArgs {
    fn request(&self) -> Request {
        let mode = match (self.lean, self.full || self.python) {
            (true, _) => Some(Mode::Lean),
            (false, true) => Some(Mode::Full),
            (false, false) => None,
        };
        Request {
            mode,
            python: self.python,
        }
    }
}

impl TestArgs {
    fn needs(&self) -> Needs {
        match (self.python, self.cuda) {
            (true, _) => Needs::Python,
            (_, true) => Needs::Cuda,
            _ => Needs::Nothing,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli.command) {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("error: {error:#}"));
            ExitCode::from(1)
        }
    }
}

fn run(chore: &Chore) -> Result<ExitCode> {
    let root = xtask::workspace_root(env!("CARGO_MANIFEST_DIR"))?;
    let environment = Environment::of_process(&root);
    match chore {
        Chore::Setup(args) => {
            let ready = xtask::setup(&root, &environment, args.request())?;
            say(&ready);
            Ok(ExitCode::SUCCESS)
        }
        Chore::Test(args) => xtask::test(&root, &environment, args.needs(), &args.passed.args),
        Chore::Export(passed) => {
            let request = Request {
                mode: Some(Mode::Full),
                python: true,
            };
            let ready = xtask::setup(&root, &environment, request).with_context(|| {
                format!(
                    "the exporter runs in .venv; with a Python of your own that has what {REQUIREMENTS} lists, it is \
                     `PYTHONPATH={EXPORTER} python -m export`"
                )
            })?;
            if ready.is_news() {
                say(&ready);
            }
            let mut python = Command::new(root.join(".venv/bin/python"));
            python.env("PYTHONPATH", root.join(EXPORTER));
            hand_over(python.args(["-m", "export"]).args(&passed.args))
        }
    }
}
