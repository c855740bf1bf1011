//! The terminal interface of a command: its output, its progress bars and its reaction to an interrupt.
//!
//! - [`outln!`], [`out!`] and [`errln!`] print without panicking when the reader has closed its end; see [`output`].
//! - [`ImageProgress`](image_progress::ImageProgress) shows the progress of a pass over images.
//! - [`interruptible`](interruptible::interruptible) runs work that cannot read the interrupt flag itself.
//! - [`interrupts`] turns Ctrl-C into a flag.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod image_progress;
pub mod interruptible;
pub mod interrupts;
pub mod output;
