//! Worker processes: copies of this program that run the cohorts of a sweep at the same time.
//!
//! The program that the user starts plans the cells, hands one cohort at a time to each worker, shows the progress and
//! writes results and report. A worker plans the same cells from the same command line, and runs those that it is told
//! to run. Both ends write a JSON object per line: [`Task`](message::Task)s to the standard input of a worker,
//! [`Event`](message::Event)s to its standard output. The end of its standard input interrupts a worker, so no worker
//! outlives the program, however that ends.
//!
//! Processes and not threads: a process that runs out of memory or crashes leaves the other cells alone, and settings
//! of libtorch that are global, such as `train.deterministic`, may differ between cohorts.

pub(crate) mod message;
mod pool;
mod serve;

pub use pool::Workers;
pub(crate) use pool::{Pool, default_count, running, split_for};
pub(crate) use serve::serve;
