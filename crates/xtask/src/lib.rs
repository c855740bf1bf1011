//! Set-up of libtorch, and cargo runs that need it; the library of `cargo xtask` and `runner`.
//!
//! [`setup()`] installs PyTorch's wheel into `.venv` and links `.libtorch` to it. `.cargo/config.toml` makes the build
//! use this link. [`ready_cargo`] runs the set-up if needed and returns the cargo command to build with. This crate does
//! not depend on libtorch, so that it builds in a fresh clone.

mod cargo;
mod embedded;
mod install;
mod libtorch;
mod machine;
mod nccl;
mod python;
mod setup;
mod stamp;
mod test_run;

pub use cargo::{ready_cargo, run_to_completion, workspace_root};
pub use embedded::{assemble_command, embedded_are_needed, make_missing_embedded};
pub use libtorch::Environment;
pub use nccl::nccl;
pub use setup::{Outcome, REQUIREMENTS, Request, setup};
pub use stamp::Mode;
pub use test_run::{TestGroup, test};

use std::fmt;
use std::io::{self, Write};

/// Folder of the Python packages `export` and `embedded`, relative to the workspace.
pub const EXPORTER: &str = "crates/encoders/python";

/// Writes a line to standard error. Write errors are ignored: a reader that has closed the pipe must not stop the work.
pub fn say(text: impl fmt::Display) {
    let _ignored = writeln!(io::stderr(), "{text}");
}
