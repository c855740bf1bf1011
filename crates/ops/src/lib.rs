//! Fused operations of a training step, with their gradients.
//!
//! Each operation has a kernel in Rust for the CPU or one in CUDA C++ (a `.cu` file beside it), or both:
//!
//! - [`norm_modulate`] and [`gated_residual`], the modulation of a transformer block (adaLN-Zero);
//! - [`attention`] and [`attention_of_heads`]; [`norm_rotate`], which prepares queries and keys;
//! - [`gelu`] and [`swiglu`];
//! - [`cosine_loss`], the alignment loss with its spatial normalisation;
//! - [`update_weights`]: gradient clipping, AdamW and moving averages.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod attention;
mod cosine;
mod gelu;
mod matrix;
mod modulation;
mod norm_rotate;
mod rows;
mod swiglu;
#[cfg(test)]
mod test_support;
mod unary;
mod weight_update;

pub use attention::{attention, attention_of_heads};
pub use cosine::{ZScore, cosine_loss};
pub use gelu::gelu;
pub use modulation::{Norm, gated_residual, norm_modulate};
pub use norm_rotate::{Rotations, norm_rotate, rotate_pairs};
pub use swiglu::swiglu;
pub use weight_update::{AVERAGES, Operands, PointerTable, Update, update_weights};
