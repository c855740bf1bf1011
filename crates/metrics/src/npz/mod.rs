//! The `.npz` files in which samples and statistics go around.
//!
//! - [`SampleReader`] and [`SampleWriter`]: sample batches as the evaluator of ADM takes them, `arr_0` u8
//!   `[N, H, W, 3]`, read and written a few images at a time.
//! - [`ReferenceFile`]: `mu` and `sigma`, and in ADM's files also `mu_s` and `sigma_s` of the spatial
//!   features, and the images `arr_0` that they are of. [`Statistics`] is one such pair.
//!
//! Arrays in Fortran order, big-endian numbers, float16 and integers are converted.
//!
//! ```
//! use metrics::npz::{Compression, SampleReader, SampleWriter};
//! use ndarray::Array4;
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("samples.npz");
//! let images = Array4::from_shape_fn((3, 4, 5, 3), |(n, y, x, c)| (n * 60 + y * 15 + x * 3 + c) as u8);
//! let mut writer = SampleWriter::create(&path, [3, 4, 5], Compression::Stored)?;
//! writer.push(images.view())?;
//! writer.finish(None)?;
//!
//! let mut reader = SampleReader::open(&path)?;
//! assert_eq!(reader.shape(), [3, 4, 5]);
//! assert_eq!(reader.next_batch(2)?.dim(), (2, 4, 5, 3));
//! assert_eq!(reader.next_batch(2)?, images.slice(ndarray::s![2.., .., .., ..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod member;
mod samples;
mod statistics;

use std::io;
use std::path::{Path, PathBuf};

pub use samples::{Compression, SampleReader, SampleWriter};
pub use statistics::{ReferenceFile, Statistics, write_statistics};

use crate::MetricsError;

/// Why an `.npz` file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NpzError {
    /// The file system failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is no `.npz`, or damaged.
    #[error("{path} is no .npz file or is damaged: {reason}; copy or make it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An array is missing.
    #[error("{path} holds no array `{name}`, only {found}: {needed}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The array.
        name: &'static str,
        /// What is there.
        found: String,
        /// What such a file must hold.
        needed: &'static str,
    },
    /// An array has another shape or type.
    #[error("`{name}` of {path} is {found}, but must be {needed}")]
    Array {
        /// The file.
        path: PathBuf,
        /// The array.
        name: String,
        /// Type and shape found.
        found: String,
        /// Type and shape needed.
        needed: String,
    },
    /// The numbers are no statistics.
    #[error("`{name}` of {path}: {source}")]
    Statistics {
        /// The file.
        path: PathBuf,
        /// The array.
        name: &'static str,
        /// What is wrong with them.
        source: MetricsError,
    },
    /// More or fewer images than the file was begun for.
    #[error("{path} was begun for {expected} images and got {found}")]
    Count {
        /// The file.
        path: PathBuf,
        /// As said at the start.
        expected: usize,
        /// As pushed.
        found: usize,
    },
}

impl NpzError {
    /// Whether the file is damaged or holds something else. An error of the disk, of permissions or of memory says
    /// nothing about the file.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::Io { .. })
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// An error while the content is read: a file cut short is damage, not the system's fault.
    fn reading(path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |error| match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput => Self::damaged(&path, error),
            _ => Self::Io {
                action: "read",
                path: path.clone(),
                source: error,
            },
        }
    }

    fn damaged(path: &Path, reason: impl ToString) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            reason: match files::describe_foreign_file(path) {
                Some(what) => format!("it is {what}"),
                None => reason.to_string(),
            },
        }
    }
}
