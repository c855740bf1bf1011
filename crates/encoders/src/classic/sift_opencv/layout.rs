//! The layout of a descriptor: orientations, cells and rotation.

/// Number of orientations, and of cells per side, of the descriptor.
pub(super) const BINS: usize = 8;
pub(super) const CELLS: usize = 4;

/// OpenCV interprets angle -1 as 360 - (-1) degrees and does not replace it by 0, so the windows and the
/// orientations are rotated by one degree.
pub(super) const ORIENTATION: f32 = 361.0;
