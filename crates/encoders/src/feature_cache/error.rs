//! Errors of writing and reading a feature cache.

use std::io;
use std::path::{Path, PathBuf};

use files::LockError;
use tch::TchError;
use thiserror::Error;

use super::Features;

/// Why features could not be stored or read.
#[derive(Debug, Error)]
pub enum CacheError {
    /// There is no cache.
    #[error("{} contains no {}; `{}` computes them", folder.display(), features.noun(), features.command())]
    Absent {
        /// The folder that was searched.
        folder: PathBuf,
        /// The requested features.
        features: Features,
    },

    /// The cache contains other features than requested.
    #[error(
        "{} does not contain the requested {}: {}; run `{}` with another --out, or remove the folder",
        folder.display(), features.noun(), differences.join("; "), features.command()
    )]
    Mismatch {
        /// The requested features.
        features: Features,
        /// The cache.
        folder: PathBuf,
        /// How the cache differs from the request.
        differences: Vec<String>,
    },

    /// Writing the cache was interrupted.
    #[error(
        "{} is not complete: {written} of {total} shards are written; run `{}` again to resume",
        folder.display(), features.command()
    )]
    Incomplete {
        /// The requested features.
        features: Features,
        /// The cache.
        folder: PathBuf,
        /// Number of complete shards.
        written: usize,
        /// Number of shards of the whole cache.
        total: usize,
    },

    /// A file differs from what was written.
    #[error("{} is damaged: {reason}; remove it and repeat the `runner prepare` command that wrote it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A sample has no features.
    #[error("{} has no {} of sample {sample}: {reason}", folder.display(), features.noun())]
    NoFeatures {
        /// The requested features.
        features: Features,
        /// The cache.
        folder: PathBuf,
        /// Index of the sample.
        sample: u64,
        /// Why it has none.
        reason: String,
    },

    /// The features cannot be stored.
    #[error("{model}, sample {sample}: {problem}")]
    InvalidFeatures {
        /// The model that computed them.
        model: String,
        /// Index of the sample.
        sample: u64,
        /// What is wrong and how to fix it.
        problem: String,
    },

    /// Another process is writing this cache.
    #[error("another process is writing this cache: {0}")]
    Locked(LockError),

    /// The disk has less free space than the cache needs.
    #[error(
        "{} needs {} more, but only {} are free; --dtype fp16 takes half the space of fp32, and --out selects \
         another disk",
        folder.display(), format_bytes(*needed), format_bytes(*free)
    )]
    InsufficientSpace {
        /// The cache.
        folder: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Free bytes.
        free: u64,
    },

    /// The disk is full.
    #[error(
        "the disk is full: cannot write {}; {written} of {total} shards are complete and kept; make room and run \
         the command again", path.display()
    )]
    DiskFull {
        /// The file that did not fit.
        path: PathBuf,
        /// Number of complete shards.
        written: usize,
        /// Number of shards of the whole cache.
        total: usize,
    },

    /// The file system returned an error.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The operation that failed.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },

    /// libtorch failed.
    #[error(transparent)]
    Tch(#[from] TchError),
}

impl From<LockError> for CacheError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Io {
                action,
                path,
                source,
            } => Self::Io {
                action,
                path,
                source,
            },
            held => Self::Locked(held),
        }
    }
}

impl CacheError {
    /// Whether the error means that a file is missing, truncated or changed. Any other error, such as a disk or
    /// permission error, says nothing about the file's content.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// Formats a size for messages.
fn format_bytes(count: u64) -> String {
    match count {
        0..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}
