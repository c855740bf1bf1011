//! Several processes that read one stream.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;

use crate::error::DataError;

/// The other processes that read the same stream, each other rows of every batch.
///
/// Which samples a batch has depends on which samples are corrupt, and only the process that reads a sample knows
/// whether it is.
pub trait Peers: Send {
    /// Returns the indices that any process passes. Every process calls this equally often.
    ///
    /// # Errors
    /// Another process does not answer.
    fn union(&mut self, corrupt: &[u64]) -> Result<Vec<u64>, Box<dyn Error + Send + Sync>>;
}

/// The part of each batch that a loader reads.
pub(super) struct Share {
    rows: BTreeSet<usize>,
    peers: Box<dyn Peers>,
}

impl Share {
    pub(super) fn new(
        rows: Vec<usize>,
        batch_size: usize,
        peers: Box<dyn Peers>,
    ) -> Result<Self, DataError> {
        let rows: BTreeSet<usize> = rows.into_iter().collect();
        match rows.last() {
            Some(last) if *last >= batch_size => Err(DataError::Config {
                key: "rows",
                found: last.to_string(),
                allowed: "less than batch_size",
            }),
            _ => Ok(Self { rows, peers }),
        }
    }

    /// Whether this loader reads a row.
    pub(super) fn has(&self, row: usize) -> bool {
        self.rows.contains(&row)
    }

    pub(super) fn union(&mut self, corrupt: &[u64]) -> Result<Vec<u64>, DataError> {
        let union = self.peers.union(corrupt);
        union.map_err(|source| DataError::Peers { source })
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share")
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}
