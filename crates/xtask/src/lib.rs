//! Set-up of libtorch, and cargo runs that need it. `cargo xtask` and `runner` are made of this.
//!
//! [`setup()`] makes libtorch available: it installs PyTorch's wheel into `.venv` and links `.libtorch` to it, which is
//! where `.cargo/config.toml` tells the build to look. [`ready_cargo`] does that where it is needed and returns the
//! cargo to build with. Nothing here depends on libtorch, so it builds in a fresh clone.

mod cargo;
mod install;
mod libtorch;
mod machine;
mod python;
mod setup;
mod stamp;
mod test_run;

pub use cargo::{hand_over, ready_cargo, workspace_root};
pub use libtorch::Environment;
pub use setup::{REQUIREMENTS, Ready, Request, setup};
pub use stamp::Mode;
pub use test_run::{Needs, test};

use std::fmt;
use std::io::{self, Write};

/// Writes a line to standard error. That nobody reads it any more must not stop the work.
pub fn say(text: impl fmt::Display) {
    let _unread = writeln!(io::stderr(), "{text}");
}
