//! The check of a grid.

use super::grid::Grid;
use crate::MetricsError;

/// Checks that the number of tokens matches the grid, and that the grid has at least two tokens.
pub(super) fn check_grid(grid: Grid, tokens: usize) -> Result<(), MetricsError> {
    if tokens != grid.tokens() {
        return Err(MetricsError::GridMismatch {
            found: tokens,
            grid,
        });
    }
    if tokens < 2 {
        return Err(MetricsError::GridTooSmall { grid });
    }
    Ok(())
}
