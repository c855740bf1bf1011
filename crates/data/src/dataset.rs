//! The trait of all data sets, and the options to open one.

use std::num::NonZeroU64;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::sample::Sample;

/// Labelled images with random access.
pub trait Dataset: Send + Sync {
    /// A short name for messages, such as `emoji64/train`.
    fn name(&self) -> &str;

    /// Number of samples.
    fn len(&self) -> u64;

    /// Whether there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of the classes, indexed by label.
    fn class_names(&self) -> &[String];

    /// Reads and decodes one sample.
    ///
    /// # Errors
    ///
    /// [`DataError::Sample`] if this sample is damaged, [`DataError::Index`] if `index` is out of
    /// range, [`DataError::Io`] if the file system fails.
    fn read(&self, index: u64) -> Result<Sample, DataError>;

    /// Returns the label of one sample, without decoding its image if the data set supports that.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn label(&self, index: u64) -> Result<i64, DataError> {
        Ok(self.read(index)?.label)
    }

    /// The image file of one sample, if each sample has its own file.
    fn path(&self, _index: u64) -> Option<&Path> {
        None
    }

    /// A stable hash, 32 hexadecimal digits, that identifies the samples: file names and sizes, the
    /// columns, and the fingerprint that `save_to_disk` recorded. It does not depend on the location of the
    /// folder. Checkpoints and feature caches store it, so that they are not used with other data.
    fn fingerprint(&self) -> &str;
}

/// How to open a data set. By default, split and columns are detected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenOptions {
    /// The split, such as `train` or `val`: the name of a subfolder, or a part of the names of files with many samples
    /// ([`open`](crate::open)).
    pub split: Option<String>,
    /// Arrow and Parquet only: the column of encoded images. By default the only column of type `Image`, or `image`.
    pub image_column: Option<String>,
    /// Arrow and Parquet only: the column of labels. By default `label`, or the only column of type `ClassLabel`.
    pub label_column: Option<String>,
    /// Ignore labels: every label is 0, and the only class is `all`.
    pub unlabelled: bool,
    /// Use only so many samples, evenly spaced. By default, all are used.
    pub limit: Option<NonZeroU64>,
}

/// Name of the only class of a data set without labels.
pub(crate) const ONLY_CLASS: &str = "all";
