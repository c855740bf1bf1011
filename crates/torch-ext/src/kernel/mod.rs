//! CPU kernels in Rust: tensor memory as slices, libtorch's threads, and the processor's widest vector
//! instructions.
//!
//! The parts can be used independently:
//!
//! - [`run`] opens a scope in which an [`Input`] is a slice; an [`Output`] is a new tensor whose elements
//!   only its owner can access until it is finished, and an [`InputRows`] is a slice per row;
//! - [`run_in_place`] opens a scope in which an [`InPlace`] is a mutable slice of an existing tensor;
//! - [`for_each`] distributes work over libtorch's own threads. There is one pool, of the size that
//!   libtorch is configured with, instead of two that compete;
//! - [`vectorised`] compiles a loop for AVX-512, AVX2 and the baseline, and selects one at run time;
//! - [`Real`] and [`Stored`] allow one loop for float32, float64 and bfloat16;
//! - [`prefetch`] requests data before it is read, and [`stream`] writes past the cache.
//!
//! ```
//! use tch::{Device, Kind, Tensor};
//! use torch_ext::kernel::{self, Input, Output};
//!
//! # fn main() -> Result<(), torch_ext::TorchError> {
//! let x = Tensor::from_slice2(&[[1f32, 2.0], [3.0, 4.0]]);
//! let mut sums = Output::<f32>::new(&[2])?;
//! let (input, rows) = (Input::<f32>::new(&x)?, sums.as_mut_slice());
//! // SAFETY: no other code uses the memory of `x`, and the kernel calls no operator.
//! unsafe {
//!     kernel::run(|scope| {
//!         let mut work: Vec<_> = scope.read(&input).chunks(2).zip(rows).collect();
//!         kernel::for_each(&mut work, |(row, sum)| **sum = row.iter().sum())
//!     })?;
//! }
//! assert_eq!(sums.into_tensor(), Tensor::from_slice(&[3f32, 7.0]));
//! # Ok(())
//! # }
//! ```

mod borrows;
mod element;
mod in_place;
mod memory;
mod number;
mod parallel;
mod prefetch;
mod rows;
mod simd;
mod stream;

pub use element::Element;
pub use in_place::{InPlace, InPlaceScope, run_in_place};
pub use memory::{Input, Output, Scope, run};
pub use number::{LANES, Real, Row, Stored, sum_lanes};
pub use parallel::{for_each, for_each_with};
pub use prefetch::prefetch;
pub use rows::{InputRows, Rows, row_stride};
pub use simd::{Vectorised, vectorised};
pub use stream::{Stream, stream, streams};
