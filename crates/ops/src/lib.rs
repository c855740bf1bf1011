//! Fused operations of a training step, with their gradients: one function each.
//!
//! An operation has a folder of its own, or a file if it has no CUDA kernel. The modulation of transformer blocks and the
//! attention of queries, keys and values have two operations each.
//!
//! A function takes any tensors that the operation is defined for. Behind it are a kernel in Rust for the CPU, one in
//! CUDA C++ (a `.cu` file beside it), and the composition of libtorch's operators; it chooses by device, dtype and
//! shape. Results of the forms differ by rounding only. [`composed`] runs a piece of code with compositions only.
//!
//! | operation | CPU kernel | CUDA kernel |
//! | --- | --- | --- |
//! | [`norm_modulate`], [`gated_residual`]: the modulation of a transformer block | yes | yes |
//! | [`self_attention`], [`attention`] | yes, with AVX2 | no |
//! | [`norm_rotate`]: norm and rotation of queries and keys | yes | no |
//! | [`gelu`], [`swiglu`] | yes | no |
//! | [`cosine_loss`]: the alignment loss with its spatial normalisation | yes | yes |
//! | [`update_weights`]: gradient clipping, AdamW and moving averages | yes | yes |
//!
//! The bits of a kernel's result do not depend on the number of threads. CUDA kernels are compiled at run time; if they
//! cannot be, the composition runs and a warning is logged ([`torch_ext::cuda::usable`]).
//!
//! # Example
//!
//! ```
//! use ops::Norm;
//! use tch::{Device, Kind, Tensor};
//!
//! # fn main() -> Result<(), torch_ext::TorchError> {
//! let cpu = (Kind::Float, Device::Cpu);
//! let x = Tensor::randn([2, 16, 32], cpu).set_requires_grad(true);
//! let [shift, scale, gate] = [0, 1, 2].map(|_| Tensor::randn([2, 1, 32], cpu));
//!
//! let y = ops::norm_modulate(&x, Norm::Layer, &shift, &scale, 1e-6)?;
//! let z = ops::gated_residual(&x, &gate, &ops::gelu(&y)?)?;
//! z.sum(Kind::Float).f_backward()?;
//! assert_eq!(x.grad().size(), [2, 16, 32]);
//! # Ok(())
//! # }
//! ```

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod attention;
mod composed;
mod cosine;
mod gelu;
mod matrix;
mod modulation;
mod norm_rotate;
mod rows;
mod scope;
mod swiglu;
#[cfg(test)]
mod test_support;
mod unary;
mod weight_update;

pub use attention::{attention, self_attention};
pub use composed::{composed, composed_if};
pub use cosine::{ZScore, cosine_loss, spatial_zscore, token_cosines, token_statistics, widened};
pub use gelu::gelu;
pub use modulation::{Norm, gated_residual, norm_modulate};
pub use norm_rotate::{Heads, Rotations, norm_rotate};
pub use swiglu::swiglu;
pub use weight_update::{AVERAGES, Operands, PointerTable, Update, update_weights};
