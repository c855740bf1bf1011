//! Several processes that work on one task, by libtorch's c10d.
//!
//! [`World`] reads from the environment which process this is, as torchrun, SLURM and Open MPI say it. The processes
//! meet in a [`Store`] of keys, which rank 0 serves, and form a [`ProcessGroup`], whose collective operations every
//! process calls in the same order: with Gloo on the CPU, and with NCCL on CUDA devices. A [`SharedGroup`] takes part in
//! graphs. A [`Reducer`] averages gradients while the backward pass runs.
//!
//! ```no_run
//! use std::time::Duration;
//! use tch::{Kind, Tensor};
//! use torch_ext::distributed::{ProcessGroup, Reduce, Store, World};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // `torchrun --no-python --nproc-per-node 4 PROGRAM` sets what this reads.
//! if let Some(world) = World::from_env()? {
//!     let timeout = Duration::from_secs(60);
//!     let store = Store::connect(&world, timeout)?;
//!     let group = ProcessGroup::gloo(&store, &world, "training", timeout)?;
//!     let ranks = Tensor::f_from_slice(&[world.rank as i64])?.f_to_kind(Kind::Float)?;
//!     group.all_reduce_(&ranks, Reduce::Sum)?;
//! }
//! # Ok(())
//! # }
//! ```

mod group;
mod nccl;
mod reducer;
mod shared;
mod store;
mod world;

pub use group::{ProcessGroup, Reduce};
pub use nccl::NcclError;
pub use reducer::{Reducer, ReducerSettings};
pub use shared::SharedGroup;
pub use store::Store;
pub use world::{Launcher, World, WorldError};
