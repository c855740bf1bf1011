//! The command line, the sweep engine and the report.
//!
//! [`experiment`] turns an experiment file into cells, each with a full configuration;
//! [`sweep`] runs them, several from one stream of batches; [`evaluation`] measures samples and
//! encoders; [`sampling`] draws many samples of a checkpoint; [`report`] turns a run folder into
//! tables, plots and a page; [`visualize`] draws what encoders see in an image. The program
//! `runner` is a thin layer of arguments on top.
//!
//! # Example
//!
//! ```
//! use irepa::config_file;
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

pub mod autoencoder_files;
pub mod cell_folder;
pub mod config_file;
pub mod encoder_bank;
pub mod evaluation;
pub mod experiment;
pub mod image_grid;
pub mod image_progress;
pub mod interruptible;
pub mod output;
pub mod prepare;
pub mod ranking;
pub mod report;
pub mod results;
pub mod sampling;
pub mod sweep;
mod tensors;
pub mod visualize;

pub use tensors::images as image_array;
