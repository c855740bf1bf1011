//! What can go wrong between a folder on disk and a batch.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why an encoded or raw image is not an [`Image`](crate::Image).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ImageError {
    /// The bytes are not a PNG, JPEG or WebP image that can be decoded.
    #[error("cannot decode the image: {0}")]
    Decode(String),
    /// A raw buffer does not have the size that its shape says.
    #[error("{what} of a {width}x{height} image holds {found} bytes, and needs {expected}")]
    Buffer {
        /// Which buffer: `rgb`, `alpha`, `mask` or `image`.
        what: &'static str,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Bytes given.
        found: usize,
        /// Bytes that the shape needs.
        expected: usize,
    },
    /// A side is zero, or so long that the image cannot be addressed.
    #[error(
        "{width}x{height} is not a size of an image: both sides must be at least 1 pixel and the whole addressable"
    )]
    Size {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// Pixels are made of 1 to 4 channels of one byte.
    #[error("{0} channels: resizing takes 1 to 4")]
    Channels(usize),
}

/// An error of this crate. Each names the file or the key, what was found, what is allowed and the
/// way out.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// Nothing at a path, or not the kind of thing that was looked for.
    #[error("{}: {found}; looked for {looked_for}", path.display())]
    NotFound {
        /// The path given.
        path: PathBuf,
        /// What is there instead.
        found: &'static str,
        /// What would have been accepted.
        looked_for: &'static str,
    },
    /// A split is missing, or none was named where one is needed.
    #[error("{}: {problem}; `split` can be {}", path.display(), list(available))]
    Split {
        /// Folder of the whole data set.
        path: PathBuf,
        /// What is wrong with the split.
        problem: String,
        /// Splits that are there.
        available: Vec<String>,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// `state.json` or `dataset_info.json` is not what `save_to_disk` writes.
    #[error("{}: key `{key}`: {problem}; {fix}", path.display())]
    Metadata {
        /// The JSON file.
        path: PathBuf,
        /// The key, `.` for the whole file.
        key: String,
        /// What was found.
        problem: String,
        /// The way out.
        fix: &'static str,
    },
    /// An Arrow file ends before its last message does.
    #[error(
        "{}: the Arrow stream is truncated: it needs {needed} bytes or more and the file has {found}; copy or download the file again",
        path.display()
    )]
    Truncated {
        /// The Arrow file.
        path: PathBuf,
        /// Bytes that the messages read so far need.
        needed: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A file is not a stream of Arrow messages as `save_to_disk` writes it.
    #[error("{}: {problem}; {fix}", path.display())]
    Malformed {
        /// The Arrow file.
        path: PathBuf,
        /// What was found.
        problem: String,
        /// The way out.
        fix: &'static str,
    },
    /// A column is not there, or cannot be chosen without help.
    #[error("{}: {problem}; set `{key}` to one of the columns: {}", path.display(), list(available))]
    MissingColumn {
        /// File that lists the columns.
        path: PathBuf,
        /// Option that names the column: `image_column` or `label_column`.
        key: &'static str,
        /// What was looked for.
        problem: String,
        /// Columns that are there.
        available: Vec<String>,
    },
    /// A column has a type that is not read.
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
        /// Types that are read, with the way to convert.
        allowed: &'static str,
    },
    /// A split without a sample.
    #[error(
        "{}: this split has no samples; name another split, or write it again with the samples that it should have",
        path.display()
    )]
    Empty {
        /// Folder of the split.
        path: PathBuf,
    },
    /// A column of images that are not there, or of a format that is not read.
    #[error("{}: column `{column}`: {problem}; {fix}", path.display())]
    Images {
        /// Folder of the split.
        path: PathBuf,
        /// The column.
        column: String,
        /// What was found.
        problem: String,
        /// The way out.
        fix: &'static str,
    },
    /// A column of labels has values without a class.
    #[error(
        "{}: column `{column}`: the label of sample {index} is {label}; allowed: {range} ({wrong} of {len} labels are \
         outside); -1 often stands for unlabelled samples: name another split, another column with `label_column`, or \
         write the data set again with labels in this range",
        path.display()
    )]
    Labels {
        /// Folder of the split.
        path: PathBuf,
        /// The column.
        column: String,
        /// The first sample with such a label.
        index: u64,
        /// Its label.
        label: String,
        /// Labels that have a class.
        range: String,
        /// How many labels have none.
        wrong: u64,
        /// How many labels there are.
        len: u64,
    },
    /// A folder of images is laid out in a way that has no single meaning, or holds none.
    #[error("{}: {problem}; {fix}", path.display())]
    Layout {
        /// The folder.
        path: PathBuf,
        /// What was found.
        problem: String,
        /// The way out.
        fix: &'static str,
    },
    /// One sample cannot be read or decoded. The loader skips these.
    #[error("{dataset}: sample {index}: {reason}")]
    Sample {
        /// Name of the data set.
        dataset: String,
        /// Index of the sample.
        index: u64,
        /// Why.
        reason: String,
    },
    /// An image file outside of a data set cannot be used.
    #[error("{}: {source}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ImageError,
    },
    /// A mask file has a pixel format without a single meaning as a mask.
    #[error("{}: {problem}; save the mask as an 8-bit grey, palette or 1-bit PNG", path.display())]
    Mask {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// An index past the end of a data set.
    #[error("{dataset}: there is no sample {index}: it has {len}")]
    Index {
        /// Name of the data set.
        dataset: String,
        /// The index asked for.
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
    /// The data set cannot fill one batch.
    #[error(
        "{dataset} has {len} samples, fewer than one batch: `batch_size` is {batch_size}; set it to {len} or less, or use more data"
    )]
    TooSmall {
        /// Name of the data set.
        dataset: String,
        /// Its samples.
        len: u64,
        /// The batch size asked for.
        batch_size: usize,
    },
    /// A cursor was saved with another data set.
    #[error(
        "the cursor is at sample {position} of an epoch, and {dataset} has {len} samples: it was saved with another data set; resume with that one, or start afresh"
    )]
    Cursor {
        /// Name of the data set.
        dataset: String,
        /// Its samples.
        len: u64,
        /// Position in the cursor.
        position: u64,
    },
    /// More corrupt samples than allowed.
    #[error(
        "{dataset}: {skipped} of {seen} samples seen were corrupt, more than `max_corrupt_share` = {max_share} allows; the last: {last}; repair or remove such samples, or raise `max_corrupt_share` to train without them"
    )]
    TooManyCorrupt {
        /// Name of the data set.
        dataset: String,
        /// Corrupt samples met.
        skipped: u64,
        /// Samples seen, with the corrupt ones.
        seen: u64,
        /// The configured limit.
        max_share: f64,
        /// The corrupt sample that went over it.
        last: Box<DataError>,
    },
    /// A whole epoch did not give one batch.
    #[error(
        "{dataset}: epoch {epoch} has no more than {valid} samples that are not corrupt, fewer than one batch: `batch_size` is {batch_size}; lower it, or repair the data"
    )]
    EmptyEpoch {
        /// Name of the data set.
        dataset: String,
        /// The epoch.
        epoch: u64,
        /// An upper bound of its valid samples.
        valid: u64,
        /// The batch size asked for.
        batch_size: usize,
    },
    /// The classes of a reference set cannot be mapped to those of the training set.
    #[error(
        "the classes of {reference} (it has {}) cannot be mapped to those of {training} (it has {}): {problem}; give a reference set whose classes have the training set's names",
        classes(*reference_classes),
        classes(*training_classes)
    )]
    Classes {
        /// Name of the training set.
        training: String,
        /// Its classes.
        training_classes: usize,
        /// Name of the reference set.
        reference: String,
        /// Its classes.
        reference_classes: usize,
        /// The first difference.
        problem: String,
    },
    /// A worker thread of the loader could not be started, or is gone.
    #[error(
        "a worker thread of the loader {problem}; with `workers` = 0 images are decoded in the calling thread"
    )]
    Workers {
        /// What happened.
        problem: String,
    },
}

impl DataError {
    /// Whether only one sample is bad, so that a loader may go on without it.
    ///
    /// An operating system's error is not: a file server that is away for a minute must not change
    /// which samples a run sees.
    pub fn is_corrupt_sample(&self) -> bool {
        matches!(self, DataError::Sample { .. })
    }

    /// Whether the data set as it is cannot be used, which is found when it is opened.
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
