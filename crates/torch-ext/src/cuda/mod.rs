//! Custom CUDA kernels, compiled at run time: CUDA is not needed to build the binary or to start it.
//!
//! A [`Program`] is CUDA C++ with macros that adapt it to dtypes and sizes. [`Kernels::load`] compiles it
//! with NVRTC for the device's architecture, once per process. [`Kernels::kernel`] finds one of its kernels, which an
//! operation keeps ([`OnceMap`](crate::OnceMap)), and [`Kernel::launch`] runs it on the stream on which libtorch's
//! operators run. NVRTC comes with the Python packages that libtorch's
//! CUDA wheel depends on. It is searched for beside libtorch, in the folders of those packages, and by the
//! dynamic linker; `IREPA_NVRTC` names another library. [`compile`] needs no GPU. [`Kernels::emulate`]
//! needs none either: it uses the host's compiler and CPU, for tests.
//!
//! Sources include `prelude.cuh` and write `KERNEL(name, (parameters))` for
//! `extern "C" __global__ void name(parameters)`. They are launched with [`BLOCK`] threads per block.
//!
//! A [`Graph`] queues recorded work as a whole.
//!
//! `cudarc` is not used because it panics if a library or symbol is missing, and cannot load a library from
//! a given path.

mod driver;
mod emulator;
mod error;
mod graph;
mod kernel;
mod kernels;
mod layout;
mod library;
mod nvrtc;
mod parameters;
mod program;

pub use error::CudaError;
pub use graph::{Graph, set_grads};
pub use kernel::{Argument, Kernel};
pub use kernels::{Kernels, resolutions, usable};
pub use layout::{Layout, readable};
pub(crate) use library::linker_message;
pub use nvrtc::{compile, compiler_version};
pub use program::{Architecture, BLOCK, Program, Source};
