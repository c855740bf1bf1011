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
    #[error("{} holds no {}; `{}` makes them", folder.display(), features.noun(), features.command())]
    Absent {
        /// Where it was looked for.
        folder: PathBuf,
        /// What was wanted.
        features: Features,
    },

    /// The cache is of something else.
    #[error(
        "{} holds other {}: {}; `{}` with another --out makes the right ones, or remove the folder",
        folder.display(), features.noun(), differences.join(", "), features.command()
    )]
    Other {
        /// What was wanted.
        features: Features,
        /// The cache.
        folder: PathBuf,
        /// Where it differs from what is wanted.
        differences: Vec<String>,
    },

    /// Making the cache was interrupted.
    #[error(
        "{} is not complete: {written} of {total} shards are there; run `{}` again, it goes on from there",
        folder.display(), features.command()
    )]
    Incomplete {
        /// What was wanted.
        features: Features,
        /// The cache.
        folder: PathBuf,
        /// Shards there are.
        written: usize,
        /// Shards there must be.
        total: usize,
    },

    /// A file is not what was written.
    #[error("{} is damaged: {reason}; remove it and run the `runner prepare` that made it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A sample has no features.
    #[error("{} has no {} of sample {sample}: {reason}", folder.display(), features.noun())]
    Nothing {
        /// What was wanted.
        features: Features,
        /// The cache.
        folder: PathBuf,
        /// The sample.
        sample: u64,
        /// Why not.
        reason: String,
    },

    /// Features that cannot be stored.
    #[error("{model}, sample {sample}: {problem}")]
    Features {
        /// What computed them.
        model: String,
        /// The sample.
        sample: u64,
        /// What is wrong, and the way out.
        problem: String,
    },

    /// Another process writes this cache.
    #[error("another process is writing this cache: {0}")]
    Locked(LockError),

    /// There is less space than the cache needs.
    #[error(
        "{} needs {} more, and {} are free; --dtype fp16 halves fp32, and --out chooses another disk",
        folder.display(), bytes(*needed), bytes(*free)
    )]
    Space {
        /// The cache.
        folder: PathBuf,
        /// Bytes that are still to be written.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },

    /// The disk is full.
    #[error(
        "the disk is full: cannot write {}; {written} of {total} shards are complete and stay, so make room \
         and run the command again", path.display()
    )]
    DiskFull {
        /// The file that did not fit.
        path: PathBuf,
        /// Shards there are.
        written: usize,
        /// Shards there will be.
        total: usize,
    },

    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's reason.
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
    /// Whether a file is missing, cut short or changed. Any other error, such as one of the disk or of permissions, says
    /// nothing of the file.
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

/// A size for people.
fn bytes(count: u64) -> String {
    match count {
        0..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}
