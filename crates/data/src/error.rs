//! The errors of opening a data set, decoding its images and loading batches.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why encoded or raw bytes cannot become an [`Image`](crate::Image).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ImageError {
    /// The bytes cannot be decoded as a PNG, JPEG or WebP image.
    #[error("cannot decode the image: {0}")]
    Decode(String),
    /// The size of a raw buffer does not match its shape.
    #[error("{what} of a {width}x{height} image has {found} bytes; expected {expected}")]
    Buffer {
        /// Which buffer: `rgb`, `alpha`, `mask` or `image`.
        what: &'static str,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Bytes in the buffer.
        found: usize,
        /// Bytes that the shape requires.
        expected: usize,
    },
    /// A side is zero, or the image is too large for the address space.
    #[error(
        "{width}x{height} is not a valid image size: both sides must be at least 1 pixel, and the image must fit into the address space"
    )]
    Size {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The number of channels is not 1 to 4. Each channel is one byte per pixel.
    #[error("an image with {0} channels cannot be resized; allowed: 1 to 4")]
    Channels(usize),
}

/// An error of this crate. Each names the file or the key, what was found, what is allowed and how
/// to fix it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// The path does not exist or is not a folder.
    #[error("{}: {found}; expected {expected}", path.display())]
    NotFound {
        /// The requested path.
        path: PathBuf,
        /// What was found there.
        found: &'static str,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// A split does not exist, or several exist and none was named.
    #[error("{}: {problem}; `split` can be {}", path.display(), list(available))]
    Split {
        /// Folder of the whole data set.
        path: PathBuf,
        /// What is wrong with the split.
        problem: String,
        /// Names of the existing splits.
        available: Vec<String>,
    },
    /// A file operation failed.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The operation that failed.
        action: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
    /// `state.json` or `dataset_info.json` does not have the form that `save_to_disk` writes.
    #[error("{}: key `{key}`: {problem}; {fix}", path.display())]
    Metadata {
        /// The JSON file.
        path: PathBuf,
        /// The key, `.` for the whole file.
        key: String,
        /// What was found.
        problem: String,
        /// How to fix it.
        fix: &'static str,
    },
    /// An Arrow file ends within a message.
    #[error(
        "{}: the Arrow stream is truncated: it needs at least {needed} bytes, but the file has {found}; copy or download the file again",
        path.display()
    )]
    Truncated {
        /// The Arrow file.
        path: PathBuf,
        /// Bytes that the messages read so far require.
        needed: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A file with samples is damaged or has an unexpected form.
    #[error("{}: {problem}; {fix}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
        /// How to fix it.
        fix: &'static str,
    },
    /// A column does not exist, or several columns qualify and none was named.
    #[error("{}: {problem}; set `{key}` to one of the columns: {}", path.display(), list(available))]
    MissingColumn {
        /// File that lists the columns.
        path: PathBuf,
        /// Option that names the column: `image_column` or `label_column`.
        key: &'static str,
        /// What is wrong with the choice of the column.
        problem: String,
        /// Names of the existing columns.
        available: Vec<String>,
    },
    /// A column has an unsupported type.
    #[error("{}: column `{column}` (`{key}`) has type {found}; allowed: {allowed}", path.display())]
    ColumnType {
        /// The Arrow file.
        path: PathBuf,
        /// Option that names the column: `image_column` or `label_column`.
        key: &'static str,
        /// Name of the column.
        column: String,
        /// Its type.
        found: String,
        /// Supported types, with the way to convert to them.
        allowed: &'static str,
    },
    /// A split has no samples.
    #[error(
        "{}: this split has no samples; choose another split, or write this one again with its samples",
        path.display()
    )]
    Empty {
        /// Folder of the split.
        path: PathBuf,
    },
    /// The image column has null images or images of an unsupported format.
    #[error("{}: column `{column}`: {problem}; {fix}", path.display())]
    Images {
        /// Folder of the split.
        path: PathBuf,
        /// The column.
        column: String,
        /// What was found.
        problem: String,
        /// How to fix it.
        fix: &'static str,
    },
    /// The label column has values that belong to no class.
    #[error(
        "{}: column `{column}`: the label of sample {index} is {label}; allowed: {range} ({wrong} of {len} labels are \
         out of range); -1 often marks unlabelled samples: choose another split, choose another column with \
         `label_column`, or write the data set again with labels in this range",
        path.display()
    )]
    Labels {
        /// Folder of the split.
        path: PathBuf,
        /// The column.
        column: String,
        /// The first sample whose label is out of range.
        index: u64,
        /// Its label.
        label: String,
        /// Valid labels.
        range: String,
        /// Number of labels out of range.
        wrong: u64,
        /// Number of labels.
        len: u64,
    },
    /// The layout of an image folder is ambiguous, or the folder has no images.
    #[error("{}: {problem}; {fix}", path.display())]
    Layout {
        /// The folder.
        path: PathBuf,
        /// What was found.
        problem: String,
        /// How to fix it.
        fix: &'static str,
    },
    /// One sample cannot be read or decoded. The loader skips such samples.
    #[error("{dataset}: sample {index}: {reason}")]
    Sample {
        /// Name of the data set.
        dataset: String,
        /// Index of the sample.
        index: u64,
        /// Why the sample cannot be read.
        reason: String,
    },
    /// An image file outside of a data set cannot be used.
    #[error("{}: {source}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why the file cannot be used.
        source: ImageError,
    },
    /// The pixel format of a mask file cannot be interpreted as a mask.
    #[error("{}: {problem}; save the mask as an 8-bit grey, palette or 1-bit PNG", path.display())]
    Mask {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// An index past the end of a data set.
    #[error("{dataset}: there is no sample {index}: the data set has {len} samples")]
    Index {
        /// Name of the data set.
        dataset: String,
        /// The requested index.
        index: u64,
        /// Samples in the data set.
        len: u64,
    },
    /// A value of a configuration is out of range.
    #[error("`{key}` is {found}; allowed: {allowed}")]
    Config {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// Allowed values.
        allowed: &'static str,
    },
    /// The data set has fewer samples than one batch.
    #[error(
        "{dataset} has {len} samples, fewer than one batch: `batch_size` is {batch_size}; set it to {len} or less, or use more data"
    )]
    TooSmall {
        /// Name of the data set.
        dataset: String,
        /// Number of its samples.
        len: u64,
        /// The configured batch size.
        batch_size: usize,
    },
    /// A cursor was saved with another data set.
    #[error(
        "the cursor is at sample {position} of an epoch, but {dataset} has {len} samples: the cursor was saved with another data set; resume with that data set, or start a new run"
    )]
    Cursor {
        /// Name of the data set.
        dataset: String,
        /// Number of its samples.
        len: u64,
        /// Position in the cursor.
        position: u64,
    },
    /// More samples are corrupt than allowed.
    #[error(
        "{dataset}: {skipped} of {seen} samples read were corrupt, more than `max_corrupt_share` = {max_share} allows; the last: {last}; repair or remove such samples, or raise `max_corrupt_share` to train without them"
    )]
    TooManyCorrupt {
        /// Name of the data set.
        dataset: String,
        /// Number of corrupt samples.
        skipped: u64,
        /// Number of samples read, including corrupt ones.
        seen: u64,
        /// The configured limit.
        max_share: f64,
        /// The corrupt sample that exceeded the limit.
        last: Box<DataError>,
    },
    /// A whole epoch did not yield a single batch.
    #[error(
        "{dataset}: epoch {epoch} has at most {valid} samples that are not corrupt, fewer than one batch: `batch_size` is {batch_size}; lower it, or repair the data"
    )]
    EmptyEpoch {
        /// Name of the data set.
        dataset: String,
        /// The epoch.
        epoch: u64,
        /// An upper bound on the number of its valid samples.
        valid: u64,
        /// The configured batch size.
        batch_size: usize,
    },
    /// The classes of a reference set cannot be mapped to those of the training set.
    #[error(
        "the classes of {reference} (it has {}) cannot be mapped to those of {training} (it has {}): {problem}; use a reference set whose class names occur in the training set",
        classes(*reference_classes),
        classes(*training_classes)
    )]
    Classes {
        /// Name of the training set.
        training: String,
        /// Number of its classes.
        training_classes: usize,
        /// Name of the reference set.
        reference: String,
        /// Number of its classes.
        reference_classes: usize,
        /// The first difference.
        problem: String,
    },
    /// A worker thread of the loader could not be started, or ended unexpectedly.
    #[error(
        "a worker thread of the loader {problem}; set `workers` = 0 to decode images in the calling thread"
    )]
    Workers {
        /// What happened.
        problem: String,
    },
    /// The other processes that read the same stream do not answer.
    #[error("the processes that read the other rows of the batches do not answer: {source}")]
    Peers {
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl DataError {
    /// Whether the error concerns one damaged sample, so that a loader may skip it.
    ///
    /// I/O errors do not count: a file server that is unreachable for a minute must not change which
    /// samples a run sees.
    pub fn is_corrupt_sample(&self) -> bool {
        matches!(self, DataError::Sample { .. })
    }

    /// Whether the data set as a whole cannot be used. Such errors occur when it is opened.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            DataError::NotFound { .. }
                | DataError::Split { .. }
                | DataError::Metadata { .. }
                | DataError::Truncated { .. }
                | DataError::Malformed { .. }
                | DataError::MissingColumn { .. }
                | DataError::ColumnType { .. }
                | DataError::Empty { .. }
                | DataError::Images { .. }
                | DataError::Labels { .. }
                | DataError::Layout { .. }
        )
    }

    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> DataError {
        let path = path.to_path_buf();
        move |source| DataError::Io {
            path,
            action,
            source,
        }
    }
}

fn classes(count: usize) -> String {
    match count {
        1 => "1 class".to_owned(),
        count => format!("{count} classes"),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "(none found)".to_owned();
    }
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}
