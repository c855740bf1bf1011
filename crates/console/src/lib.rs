//! The surface of a command: what it prints, its progress bars, and how it is interrupted.
//!
//! - [`outln!`], [`out!`] and [`errln!`] print without panicking when a reader has gone; [`output`] has the details.
//! - [`ImageProgress`](image_progress::ImageProgress) shows the progress of a pass over images.
//! - [`interruptible`](interruptible::interruptible) runs work that cannot read the interrupt flag itself.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod image_progress;
pub mod interruptible;
pub mod output;
