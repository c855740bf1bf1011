//! What encoders see in an image: maps of their patch tokens, as one sheet.
//!
//! For each image of [`TitledImages`] and each encoder, [`Row::new`] computes the cosine similarity of every
//! token with the token of each anchor patch, and the first three principal components of the
//! tokens as colours; both of the tokens as they are and after spatial normalisation. A [`Sheet`]
//! lays them out as the figures of arXiv 2512.10794 do, and writes a PNG or an SVG.
//!
//! | file | is about |
//! | --- | --- |
//! | `anchor` | which patches the others are compared with |
//! | `images` | images from a data set or from files |
//! | `maps` | from an encoder's tokens to numbers |
//! | `colour` | from numbers to colours |
//! | `layout` | where everything stands |
//! | `picture`, `font`, `raster`, `svg` | pixels, letters and files |

mod anchor;
mod colour;
mod font;
mod images;
mod layout;
mod maps;
mod picture;
mod raster;
mod svg;

use std::io::Write;
use std::path::{Path, PathBuf};

use alignment::{AlignmentError, SpatialNorm};
use data::{DataError, ImageError};
use encoders::EncoderError;
use metrics::MetricsError;
use tch::TchError;
use thiserror::Error;
use training::TrainError;

use font::Fonts;
use report::image_grid::{Compression, ImageGridError, MAX_SIDE, visible_upscale, write_png};

pub use anchor::{Anchor, Patch};
pub use images::TitledImages;
pub use maps::{Maps, Row, TokenMaps};

/// Why there is no sheet, or no row of one.
#[derive(Debug, Error)]
pub enum VisualizeError {
    /// An image could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Pixels could not be resized.
    #[error(transparent)]
    Pixels(#[from] ImageError),
    /// The encoder failed.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// The tokens could not be normalised.
    #[error(transparent)]
    Alignment(#[from] AlignmentError),
    /// The tokens have no maps, such as those that are not finite.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The images could not be moved to the device.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// libtorch failed.
    #[error(transparent)]
    Tch(#[from] TchError),
    /// An anchor lies outside of an encoder's grid.
    #[error(
        "{anchor} is not on the {height}x{width} patches of {encoder}: allowed are rows 0 to {}, columns \
         0 to {}, or both as shares of the image such as 0.5,0.5",
        .height.saturating_sub(1),
        .width.saturating_sub(1)
    )]
    Anchor {
        /// The anchor as it was given.
        anchor: Anchor,
        /// The encoder.
        encoder: String,
        /// Rows of its grid.
        height: usize,
        /// Columns of its grid.
        width: usize,
    },
    /// The name of the file says neither PNG nor SVG.
    #[error("{}: the name must end in .png or .svg", .0.display())]
    Format(PathBuf),
    /// The sheet is too large, or the file cannot be written.
    #[error(transparent)]
    Image(#[from] ImageGridError),
    /// A map cannot be put into an SVG.
    #[error("a map cannot be encoded as PNG")]
    Encode(#[source] image::ImageError),
    /// The letters cannot be read.
    #[error("the built-in font is damaged: build the program again")]
    Font(#[from] ab_glyph::InvalidFont),
}

/// What kind of file a sheet becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Pixels only.
    Png,
    /// Maps as embedded PNG, labels as text.
    Svg,
}

impl Format {
    /// The format that the file's extension names.
    ///
    /// # Errors
    /// [`VisualizeError::Format`] for another extension, or none.
    pub fn of(path: &Path) -> Result<Self, VisualizeError> {
        let extension = path.extension().map(|text| text.to_ascii_lowercase());
        match extension.as_ref().and_then(|text| text.to_str()) {
            Some("png") => Ok(Format::Png),
            Some("svg") => Ok(Format::Svg),
            _ => Err(VisualizeError::Format(path.to_owned())),
        }
    }
}

/// One block an image; in it one row an encoder, with the maps side by side.
#[derive(Debug)]
pub struct Sheet {
    /// The images, in the order of the blocks.
    pub images: TitledImages,
    /// The encoders, each with maps of all images.
    pub rows: Vec<Row>,
    /// What the normalised maps are normalised with; for the legend.
    pub norm: SpatialNorm,
    /// Whether maps are interpolated (bicubic) instead of drawn as one square a patch.
    pub smooth: bool,
}

/// Side at which images of `resolution` pixels, and their maps, are drawn.
fn cell_side(resolution: u32) -> u32 {
    let side = resolution as usize;
    u32::try_from(side * visible_upscale(side, side)).unwrap_or(u32::MAX)
}

/// Refuses a sheet that is too large for a picture before any encoder is run: for each of so many images as
/// many rows as `encoders`, each with the image of `resolution` pixels and the maps of so many anchors.
///
/// # Errors
/// [`ImageGridError::Shape`].
pub fn check_size(
    path: &Path,
    images: usize,
    encoders: usize,
    anchors: usize,
    resolution: u32,
) -> Result<(), VisualizeError> {
    let side = cell_side(resolution) as usize;
    let height = images.saturating_mul(encoders).saturating_mul(side);
    // The image and two maps of components beside two an anchor.
    let width = anchors.saturating_mul(2).saturating_add(3);
    let width = width.saturating_mul(side);
    if height.max(width) <= MAX_SIDE {
        return Ok(());
    }
    Err(too_large(
        path,
        format!(
            "{images} images, {encoders} encoders and {anchors} anchors at {side} pixels are {width} x {height} \
             pixels or more, and at most {MAX_SIDE} a side are drawn; take fewer of them, or a lower \
             resolution"
        ),
    ))
}

fn too_large(path: &Path, problem: String) -> VisualizeError {
    let path = path.to_owned();
    ImageGridError::Shape { path, problem }.into()
}

impl Sheet {
    /// Draws the sheet and writes it in the [`Format`] of the file's extension. The file appears
    /// complete or not at all.
    ///
    /// # Errors
    /// Another extension, a sheet of more than 16384 pixels a side, or a file that cannot be
    /// written.
    pub fn write(&self, path: &Path) -> Result<(), VisualizeError> {
        let format = Format::of(path)?;
        let fonts = Fonts::embedded()?;
        let picture = layout::layout(self, &fonts)?;
        let (width, height) = (picture.width, picture.height);
        if width.max(height) as usize > MAX_SIDE {
            return Err(too_large(
                path,
                format!(
                    "it would be {width} x {height} pixels, and at most {MAX_SIDE} a side are drawn; take \
                     fewer images, encoders or anchors, or a lower resolution"
                ),
            ));
        }
        match format {
            Format::Png => {
                let raster = raster::render(&picture, &fonts);
                let size = (raster.width, raster.height);
                write_png(path, &raster.pixels, size, Compression::Best)?;
            }
            Format::Svg => {
                let text = svg::render(&picture)?;
                let written = files::write(path, |file| file.write_all(text.as_bytes()));
                written.map_err(|source| ImageGridError::Write {
                    path: path.to_owned(),
                    source,
                })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read_off_the_extension() {
        let format = |name: &str| Format::of(Path::new(name));
        assert_eq!(format("a/b.png").unwrap(), Format::Png);
        assert_eq!(format("B.SVG").unwrap(), Format::Svg);
        for name in ["a.gif", "png", "a.png/b", ".svg"] {
            let error = format(name).unwrap_err().to_string();
            assert!(error.contains(".png or .svg"), "{error}");
        }
    }

    #[test]
    fn small_images_are_enlarged_and_large_sheets_refused() {
        assert_eq!(
            (cell_side(16), cell_side(64), cell_side(256)),
            (128, 128, 256)
        );
        let check = |images, encoders, anchors| {
            check_size(Path::new("sheet.png"), images, encoders, anchors, 256)
        };
        assert!(check(8, 8, 30).is_ok());
        let error = check(8, 9, 1).unwrap_err().to_string();
        assert!(
            error.contains("sheet.png") && error.contains("18432"),
            "{error}"
        );
        assert!(check(1, 1, 31).is_err());
        assert!(check(usize::MAX, 9, 1).is_err() && check(1, 1, usize::MAX).is_err());
    }
}
