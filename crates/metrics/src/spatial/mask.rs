//! Converts a mask of pixels to a mask of patches.

use ndarray::{ArrayView2, s};

use super::grid::Grid;
use crate::MetricsError;

/// Computes the foreground mask `[T]` of a grid's patches from a mask of pixels `[H, W]`.
///
/// A patch is foreground if any of its pixels is non-zero. Upstream: the max pooling in
/// `load_and_filter_masks` (256x256 pixels, 16x16 patches).
///
/// # Errors
///
/// [`MetricsError::MaskSize`] if the sides of the mask are not positive multiples of the grid's.
pub fn patch_mask(pixels: ArrayView2<'_, u8>, grid: Grid) -> Result<Vec<bool>, MetricsError> {
    let (height, width) = pixels.dim();
    let divides = |side: usize, patches: usize| side > 0 && side.checked_rem(patches) == Some(0);
    if !divides(height, grid.height) || !divides(width, grid.width) {
        return Err(MetricsError::MaskSize {
            height,
            width,
            grid,
        });
    }
    let (rows, columns) = (height / grid.height, width / grid.width);
    let foreground = |t| {
        let (row, column) = grid.position(t);
        let (y, x) = (row * rows, column * columns);
        let patch = pixels.slice(s![y..y + rows, x..x + columns]);
        patch.iter().any(|&pixel| pixel != 0)
    };
    Ok((0..grid.tokens()).map(foreground).collect())
}
