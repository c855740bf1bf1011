//! Kernels in Rust: tensors' memory as slices, libtorch's threads, and the processor's widest vectors.
//!
//! Its parts, each of use alone:
//!
//! - [`run`] opens a scope in which an [`Input`] is a slice; an [`Output`] is a tensor in the making,
//!   whose elements are the caller's alone until it becomes a tensor;
//! - [`run_in_place`] opens one in which an [`InPlace`] is a mutable slice of a tensor that exists;
//! - [`for_each`] shares work among libtorch's own threads, so that there is one pool, of the size that
//!   libtorch was told, and not two that spin against each other;
//! - [`vectorised`] compiles a loop for AVX-512, AVX2 and the baseline, and picks when it runs;
//! - [`Real`] and [`Stored`] let one loop be written for float32, float64 and bfloat16;
//! - [`past_cache`] lets a kernel write past the cache what is too large for it, and [`prefetch`] asks for
//!   what it reads next;
//! - [`multiply`] multiplies small matrices, of rows in memory with what is [`Packed`] for it, and
//!   [`Columns`] are a matrix cut up for several to write.
//!
//! ```
//! use tch::{Device, Kind, Tensor};
//! use torch_ext::kernel::{self, Input, Output};
//!
//! # fn main() -> Result<(), torch_ext::TorchError> {
//! let x = Tensor::from_slice2(&[[1f32, 2.0], [3.0, 4.0]]);
//! let mut sums = Output::<f32>::new(&[2])?;
//! let (input, rows) = (Input::<f32>::new(&x)?, sums.as_mut_slice());
//! kernel::run(|scope| {
//!     let mut work: Vec<_> = scope.read(&input).chunks(2).zip(rows).collect();
//!     kernel::for_each(&mut work, |(row, sum)| **sum = row.iter().sum())
//! })?;
//! assert_eq!(sums.into_tensor(), Tensor::from_slice(&[3f32, 7.0]));
//! # Ok(())
//! # }
//! ```

mod cache;
mod columns;
mod in_place;
mod lent;
mod matrix;
mod memory;
mod number;
mod parallel;
mod simd;

pub use cache::{PastCache, past_cache, prefetch};
pub use columns::Columns;
pub use in_place::{InPlace, InPlaceScope, run_in_place};
pub use matrix::{Operand, Packed, Rows, multiplies_fast, multiply};
pub use memory::{Element, Input, Output, Scope, run};
pub use number::{LANES, Real, Row, Stored, sum_lanes};
pub use parallel::{for_each, for_each_with};
pub use simd::{Vectorised, vectorised};
