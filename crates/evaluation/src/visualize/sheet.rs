//! A sheet of maps.

use alignment::SpatialNorm;
use report::image_grid::visible_upscale;

use super::images::TitledImages;
use super::maps::Row;

/// A sheet of maps: one block per image, and in each block one row per encoder.
#[derive(Debug)]
pub struct Sheet {
    /// The images, in the order of the blocks.
    pub images: TitledImages,
    /// The maps of each encoder for all images.
    pub rows: Vec<Row>,
    /// The normalisation of the normalised maps, for the legend.
    pub norm: SpatialNorm,
    /// Whether maps are interpolated (bicubic) instead of drawn as one square per patch.
    pub smooth: bool,
}

/// The side at which images of `resolution` pixels and their maps are drawn, in pixels.
pub(super) fn cell_side(resolution: u32) -> u32 {
    let side = resolution as usize;
    u32::try_from(side * visible_upscale(side, side)).unwrap_or(u32::MAX)
}
