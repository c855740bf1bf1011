use std::io;
use std::path::{Path, PathBuf};

use tch::TchError;
use thiserror::Error;

/// Why tokens could not be stored or read.
#[derive(Debug, Error)]
pub enum CacheError {
    /// There is no cache.
    #[error("{} holds no tokens; `runner prepare features` makes them", .0.display())]
    Absent(PathBuf),

    /// The cache is of something else.
    #[error(
        "{} holds other tokens: {}; `runner prepare features` with another --out makes the right ones, \
         or remove the folder",
        folder.display(), differences.join(", ")
    )]
    Other {
        /// The cache.
        folder: PathBuf,
        /// Where it differs from what is wanted.
        differences: Vec<String>,
    },

    /// Making the cache was interrupted.
    #[error(
        "{} is not complete: {written} of {total} shards are there; run `runner prepare features` again, \
         it goes on from there", folder.display()
    )]
    Incomplete {
        /// The cache.
        folder: PathBuf,
        /// Shards there are.
        written: usize,
        /// Shards there must be.
        total: usize,
    },

    /// A file is not what was written.
    #[error("{} is damaged: {reason}; remove it and run `runner prepare features` again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A sample has no tokens.
    #[error("{} has no tokens of sample {sample}: {reason}", folder.display())]
    NoTokens {
        /// The cache.
        folder: PathBuf,
        /// The sample.
        sample: u64,
        /// Why not.
        reason: String,
    },

    /// Tokens that cannot be stored.
    #[error("encoder {encoder}, sample {sample}: {problem}")]
    Tokens {
        /// The encoder.
        encoder: String,
        /// The sample.
        sample: u64,
        /// What is wrong, and the way out.
        problem: String,
    },

    /// Another process writes this cache.
    #[error("{} is being written by another process", .0.display())]
    Locked(PathBuf),

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

impl CacheError {
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
