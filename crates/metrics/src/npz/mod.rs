//! Reads and writes `.npz` files of samples and of feature statistics.
//!
//! - [`SampleReader`] and [`SampleWriter`]: sample files in the format of ADM's evaluator, `arr_0` u8
//!   `[N, H, W, 3]`, read and written in batches of images.
//! - [`ReferenceFile`]: the statistics `mu` and `sigma`. ADM's files also have `mu_s` and `sigma_s` of the
//!   spatial features, and images `arr_0`. [`Statistics`] is one pair of mean and covariance.
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

mod header;
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
    /// The file system returned an error.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The operation that failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The file is not an `.npz` file or is damaged.
    #[error("{path} is not an .npz file or is damaged: {reason}; copy or create it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An array is missing.
    #[error("{path} contains no array `{name}`, only {found}: {needed}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// Name of the array.
        name: &'static str,
        /// Names of the arrays in the file.
        found: String,
        /// Required contents of the file.
        needed: &'static str,
    },
    /// An array has the wrong shape or dtype.
    #[error("`{name}` of {path} is {found}, but must be {needed}")]
    Array {
        /// The file.
        path: PathBuf,
        /// Name of the array.
        name: String,
        /// Dtype and shape found.
        found: String,
        /// Dtype and shape required.
        needed: String,
    },
    /// The values are not valid statistics.
    #[error("`{name}` of {path}: {source}")]
    Statistics {
        /// The file.
        path: PathBuf,
        /// Name of the array.
        name: &'static str,
        /// What is wrong with the values.
        source: MetricsError,
    },
    /// The number of images differs from the number that was declared when the file was created.
    #[error("{path} was created for {expected} images but received {found}")]
    Count {
        /// The file.
        path: PathBuf,
        /// Number declared at creation.
        expected: usize,
        /// Number pushed.
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

    /// Converts an error of reading the content: a truncated file is reported as damaged, not as a failure of the
    /// system.
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
