//! Image data sets, deterministic shuffling and a prefetching loader, without libtorch.
//!
//! [`open`] opens a folder as a [`Dataset`]: labelled images with random access, from a Hugging Face
//! `save_to_disk` folder ([`arrow`]), from Parquet files ([`parquet`]), from tar files ([`webdataset`]) or from class folders of image files
//! ([`folder`]). A [`Loader`]
//! shuffles the data set anew each epoch, crops each image as ADM does ([`center_crop`]), and yields
//! [`Batch`]es of bytes without end. Each batch carries a [`Cursor`]; a loader that starts from it
//! resumes exactly after that batch. [`read_batch`] reads given samples in order, for evaluation.
//!
//! All random numbers derive from one seed through [`seed`], and results do not depend on the number
//! of threads. Resizing is bit-identical to Pillow 11.3 ([`pillow`]).
//!
//! ```
//! use data::{Background, Cursor, Loader, LoaderConfig, OpenOptions};
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../experiments/data/emoji64");
//! let options = OpenOptions { split: Some("train".into()), ..OpenOptions::default() };
//! let dataset = data::open(folder, &options)?;
//! assert_eq!(dataset.class_names()[0], "Activities");
//!
//! let config = LoaderConfig {
//!     batch_size: 16,
//!     resolution: 32,
//!     background: Background::White,
//!     ..LoaderConfig::default()
//! };
//! let mut loader = Loader::new(dataset.clone(), config.clone(), Cursor::default())?;
//! let first = loader.next().unwrap()?;
//! assert_eq!(first.images.len(), 16 * 3 * 32 * 32);
//! let second = loader.next().unwrap()?;
//!
//! // A checkpoint would store `first.cursor`.
//! let mut resumed = Loader::new(dataset, config, first.cursor)?;
//! assert_eq!(resumed.next().unwrap()?, second);
//! # Ok::<(), data::DataError>(())
//! ```

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod arrow;
pub mod center_crop;
pub mod folder;
pub mod mask;
pub mod parquet;
pub mod pillow;
pub mod seed;
pub mod webdataset;

mod batch;
mod classes;
mod cursor;
mod dataset;
mod entries;
mod error;
mod features;
mod file_pool;
mod fingerprint;
mod formats;
mod jpeg;
mod layout;
mod loader;
mod open;
mod orientation;
mod positioned;
mod render;
mod sample;
mod subset;

pub use batch::{Batch, read_batch};
pub use classes::ClassMap;
pub use cursor::Cursor;
pub use dataset::{Dataset, OpenOptions};
pub use error::{DataError, ImageError};
pub use loader::{Loader, LoaderConfig, Peers};
pub use open::open;
pub use render::Background;
pub use sample::{Image, Sample};
pub use subset::evenly_spaced;
