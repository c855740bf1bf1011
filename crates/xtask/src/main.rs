//! Set-up and project chores, run as `cargo xtask COMMAND`.
//!
//! `setup` makes libtorch available: it installs PyTorch's wheel into `.venv` and links `.libtorch` to it,
//! which is where `.cargo/config.toml` tells the build to look. `sweep` and `test` do that when it is needed
//! and hand over to cargo, so that each is the one command a fresh clone wants.

mod install;
mod libtorch;
mod machine;
mod python;
mod setup;
mod stamp;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::libtorch::Environment;
use crate::setup::Request;
use crate::stamp::Mode;

/// Folder of the Python package `export`, relative to the workspace.
const EXPORTER: &str = "crates/encoders/python";

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Set-up and project chores",
    after_help = "Example: cargo xtask sweep experiments/encoders.toml"
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
    /// Set up if needed, then `cargo run -p irepa -- sweep ARGS`.
    ///
    /// `cargo run -p irepa -- sweep --help` lists the arguments.
    #[command(after_help = "Example: cargo xtask sweep experiments/encoders.toml --out runs")]
    Sweep(Passed),
    /// Set up if needed, then `cargo test --workspace ARGS`.
    #[command(after_help = "Example: cargo xtask test spatial_norm")]
    Test(Passed),
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

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn run(chore: &Chore) -> Result<ExitCode> {
    let root = workspace_root()?;
    let environment = Environment::of_process(&root);
    match chore {
        Chore::Setup(args) => {
            let ready = setup::setup(&root, &environment, args.request())?;
            eprintln!("{ready}");
            Ok(ExitCode::SUCCESS)
        }
        Chore::Sweep(passed) => {
            let mut cargo = ready_cargo(&root, &environment)?;
            cargo.args(["run", "--package", "irepa", "--", "sweep"]);
            hand_over(cargo.args(&passed.args))
        }
        Chore::Test(passed) => {
            let mut cargo = ready_cargo(&root, &environment)?;
            // Tests run side by side, each with libtorch's threads: those that wait for work must not keep a core
            // from the others by spinning.
            if env::var_os("OMP_WAIT_POLICY").is_none() {
                cargo.env("OMP_WAIT_POLICY", "passive");
            }
            hand_over(cargo.args(["test", "--workspace"]).args(&passed.args))
        }
        Chore::Export(passed) => {
            let request = Request {
                mode: Some(Mode::Full),
                python: true,
            };
            let ready = setup::setup(&root, &environment, request).with_context(|| {
                format!(
                    "the exporter runs in .venv; with a Python of your own that has what {} lists, it is \
                     `PYTHONPATH={EXPORTER} python -m export`",
                    setup::REQUIREMENTS
                )
            })?;
            if ready.is_news() {
                eprintln!("{ready}");
            }
            let mut python = Command::new(root.join(".venv/bin/python"));
            python.env("PYTHONPATH", root.join(EXPORTER));
            hand_over(python.args(["-m", "export"]).args(&passed.args))
        }
    }
}

/// The folder that holds `.cargo`, `.venv` and `.libtorch`. Cargo names this package's folder when it runs it,
/// which stays true after the clone was moved.
fn workspace_root() -> Result<PathBuf> {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package
        .ancestors()
        .nth(2)
        .map(Path::to_path_buf)
        .with_context(|| format!("{} is not inside a workspace", package.display()))
}

/// Cargo, after a set-up where one is needed.
fn ready_cargo(root: &Path, environment: &Environment) -> Result<Command> {
    let ready = setup::setup(root, environment, Request::default())?;
    if ready.is_news() {
        eprintln!("{ready}");
    }
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    if !environment.libtorch_is_own() {
        // Cargo put it there from `.cargo/config.toml` and will again: without it the command below is the
        // very command that a user would type, and shares its build.
        cargo.env_remove("LIBTORCH");
    }
    Ok(cargo)
}

/// Runs `command` to its end and passes its exit code on.
fn hand_over(command: &mut Command) -> Result<ExitCode> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
