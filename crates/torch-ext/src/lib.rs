//! What [`tch`] lacks, as a small C++ shim with a safe Rust face.
//!
//! `tch` binds libtorch's tensors and operators. Training needs a little more, which libtorch
//! has in C++ only; each binding is one module here:
//!
//! - [`Generator`]: random numbers from an explicit generator with a state that can be saved,
//!   instead of the process-wide one;
//! - [`Params`]: an ordered, named set of weights, drawn on the CPU from one seed whatever the
//!   device, loaded strictly;
//! - [`autograd`]: functions with a derivative of one's own, written in Rust;
//! - [`autocast`]: mixed precision with a chosen dtype, on CPU too;
//! - [`kernel`]: tensors' memory as slices, libtorch's threads and vector units, for kernels in Rust;
//! - [`cuda`]: CUDA kernels of one's own, compiled at run time and run on libtorch's streams;
//! - [`stream`]: work on a device beside other work, and in order with it;
//! - [`optim`]: fused AdamW, EMA, gradient norm and clipping over whole lists of tensors;
//! - [`device`]: `libtorch_cuda.so` loaded at run time, so that one binary serves machines with
//!   and without CUDA; memory figures; TF32 and determinism switches.
//!
//! All `unsafe` of the project is in this crate. Every binding follows the rules written in
//! `ffi.rs`.
//!
//! # Example
//!
//! ```
//! use tch::{Device, Kind};
//! use torch_ext::{Generator, Init, Params};
//!
//! # fn main() -> Result<(), torch_ext::TorchError> {
//! // The same seed gives the same bits, and a saved state continues the stream.
//! let mut generator = Generator::new(Device::Cpu, 7)?;
//! let state = generator.state()?;
//! let first = generator.randn(&[2, 3], Kind::Float)?;
//! generator.set_state(&state)?;
//! assert_eq!(first, generator.randn(&[2, 3], Kind::Float)?);
//!
//! // Weights carry the names of a PyTorch state dict.
//! let params = Params::new(Device::Cpu, 0)?;
//! let weight = params.root().sub("blocks").sub(0).var("weight", &[4, 3], Init::XavierUniform)?;
//! assert_eq!(params.entries()[0].name, "blocks.0.weight");
//! assert!(weight.requires_grad());
//! # Ok(())
//! # }
//! ```

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod autocast;
pub mod autograd;
pub mod cuda;
pub mod device;
mod error;
mod ffi;
mod generator;
pub mod kernel;
pub mod optim;
mod params;
pub mod readback;
pub mod stream;

pub use error::TorchError;
pub use generator::Generator;
pub use params::{Init, Mismatch, Param, Params, Scope};
