//! The position of a [`Loader`](crate::Loader) in its stream.

use serde::{Deserialize, Serialize};

/// A position in the stream, which a checkpoint stores. The default is the start.
///
/// With the same data set and [`LoaderConfig`](crate::LoaderConfig) (except `workers` and `prefetch`), a loader that
/// starts from a batch's cursor yields exactly the batches that would have followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Number of samples already read in this epoch, including corrupt ones.
    pub position: u64,
    /// Number of samples read since the start, including corrupt ones.
    pub seen: u64,
    /// Number of corrupt samples since the start. A sample counts again in each epoch.
    pub skipped: u64,
}
