//! Extensions of [`tch`]: a small C++ shim with a safe Rust interface.
//!
//! `tch` binds libtorch's tensors and operators. Training also needs parts of libtorch that exist only
//! in C++; each has a module here:
//!
//! - [`Generator`]: random numbers from an explicit generator instead of the process-wide one, with
//!   a state that can be saved;
//! - [`Params`]: an ordered, named set of weights, initialised on the CPU from one seed for any
//!   device, with strict loading of state dicts;
//! - [`autograd`]: functions with custom derivatives, written in Rust;
//! - [`autocast`]: mixed precision with a chosen dtype, also on the CPU;
//! - [`kernel`]: CPU kernels in Rust: tensor memory as slices, libtorch's threads, vector instructions;
//! - [`cuda`]: custom CUDA kernels, compiled at run time and launched on libtorch's streams, and CUDA
//!   graphs;
//! - [`OnceMap`]: values that are made once, such as compiled kernels;
//! - [`stream`]: streams and events, for work that overlaps on a device;
//! - [`readback`]: copies to the host that do not wait for later work;
//! - [`operators`]: counts of the operators that code calls;
//! - [`openmp`]: how long libtorch's threads on the CPU wait without sleeping;
//! - [`optim`]: fused AdamW, EMA, gradient norm and clipping over lists of tensors;
//! - [`distributed`]: several processes that train together: a store of keys, collective operations, and gradients
//!   that are reduced while the backward pass runs;
//! - [`device`]: `libtorch_cuda.so` loaded at run time, so that one binary runs on machines with and
//!   without CUDA; memory statistics; switches for TF32 and determinism.
//!
//! All `unsafe` code of the project is in this crate and in `ops`. Every binding follows the safety rules in
//! `ffi.rs`.
//!
//! # Example
//!
//! ```
//! use tch::{Device, Kind};
//! use torch_ext::{Generator, Init, Params};
//!
//! # fn main() -> Result<(), torch_ext::TorchError> {
//! // The same seed returns the same bits, and a saved state continues the sequence.
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
pub mod distributed;
mod error;
mod ffi;
mod generator;
pub mod kernel;
mod once_map;
pub mod openmp;
pub mod operators;
pub mod optim;
mod params;
pub mod readback;
pub mod stream;

pub use error::TorchError;
pub use generator::Generator;
pub use once_map::OnceMap;
pub use params::{Init, Mismatch, Param, Params, Scope};
