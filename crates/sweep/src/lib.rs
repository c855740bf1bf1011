//! The sweep engine: plans the cells of an experiment, groups them into cohorts, runs the cells that are not done, and
//! keeps `results.csv` and the report up to date.
//!
//! - [`experiment`] expands an experiment file into cells, each with a complete configuration.
//! - [`run()`] runs them, in several processes at the same time ([`Workers`]). Cells with the same data and encoder form a cohort, which is trained from one stream of
//!   batches. [`train`] runs a single configuration the same way.
//! - [`cell_folder`] reads and writes the folder of a cell: its configuration, result, samples and lock.
//! - [`ranks`] trains one configuration with several processes.
//! - [`prepare`] computes feature caches and latents before training.
//! - [`config_file`] merges configuration files, their `base` files and the settings of the command line.
//!
//! # Example
//!
//! ```
//! use sweep::config_file;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! std::fs::write(folder.join("base.toml"), "[train]\nsteps = 100\nseed = 7\n")?;
//! std::fs::write(folder.join("mine.toml"), "base = 'base.toml'\n[train]\nsteps = 200\n")?;
//!
//! let settings = ["optimizer.lr=3e-4".to_owned()];
//! let config = config_file::load(&folder.join("mine.toml"), &settings)?;
//! assert_eq!((config.train.steps, config.train.seed), (200, 7));
//! assert_eq!(config.optimizer.lr, 3e-4);
//!
//! let error = config_file::load(&folder.join("mine.toml"), &["train.stepz=1".to_owned()]);
//! assert!(error.unwrap_err().to_string().contains("Did you mean `steps`?"));
//! # Ok(())
//! # }
//! ```

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod active_cell;
pub mod cell_folder;
mod cell_lock;
mod cohort;
mod cohort_key;
pub mod config_file;
mod context;
mod error;
pub mod experiment;
mod failure;
mod keeping_encoder;
mod latent_source;
mod measures;
mod memory;
mod mutex;
mod overview;
mod planned;
mod prefetch;
pub mod prepare;
mod progress;
pub mod ranks;
mod results_file;
mod resume;
mod run;
mod shards;
mod sheet;
mod single;
mod token_source;
mod workers;

pub use context::InitialWeights;
pub use error::SweepError;
pub use run::{Options, Outcome, run};
pub use shards::{Shard, ShardError};
pub use single::{TrainOptions, train};
pub use workers::Workers;
