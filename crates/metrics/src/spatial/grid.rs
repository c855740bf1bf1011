//! The grid of an image's patch tokens.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A grid of patch tokens; token `t` is in row `t / width` and column `t % width`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Grid {
    /// Number of tokens, `height * width`.
    pub fn tokens(&self) -> usize {
        self.height.saturating_mul(self.width)
    }

    /// Largest Manhattan distance between two tokens. Every distance from 0 to this value occurs.
    pub fn max_distance(&self) -> usize {
        let (rows, columns) = (self.height, self.width);
        rows.saturating_sub(1)
            .saturating_add(columns.saturating_sub(1))
    }

    /// Returns the row and column of token `t`.
    pub(super) fn position(&self, t: usize) -> (usize, usize) {
        (t / self.width, t % self.width)
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.height, self.width)
    }
}
