//! Draws maps of the patch tokens of encoders on one sheet.
//!
//! For each image of [`TitledImages`] and each encoder, [`Row::new`] computes the cosine similarity of every
//! token to the token of each anchor patch, and the first three principal components of the tokens as colours. Both are
//! computed for the unchanged tokens and after spatial normalisation. A [`Sheet`] arranges the maps as in the figures of
//! arXiv 2512.10794 and is written as a PNG or an SVG.
//!
//! | module | purpose |
//! | --- | --- |
//! | `anchor` | chooses the anchor patches |
//! | `images` | reads images from a data set or from files |
//! | `maps` | computes maps from an encoder's tokens |
//! | `colour` | maps numbers to colours |
//! | `layout` | arranges images, maps and labels on a sheet |
//! | `picture`, `font`, `drawing` | draw the sheet as PNG or SVG |

mod anchor;
mod colour;
mod drawing;
mod font;
mod images;
mod layout;
mod maps;
mod picture;

use std::error::Error as StdError;
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

/// Why a sheet, or a row of one, could not be drawn.
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
    /// No maps can be computed of the tokens, for example because they are not finite.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The images could not be moved to the device.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// libtorch failed.
    #[error(transparent)]
    Tch(#[from] TchError),
    /// An anchor is outside an encoder's grid.
    #[error(
        "{anchor} is outside the {height}x{width} patch grid of {encoder}: use rows 0 to {} and columns \
         0 to {}, or fractions of the image such as 0.5,0.5",
        .height.saturating_sub(1),
        .width.saturating_sub(1)
    )]
    Anchor {
        /// The requested anchor.
        anchor: Anchor,
        /// The encoder.
        encoder: String,
        /// Rows of its grid.
        height: usize,
        /// Columns of its grid.
        width: usize,
    },
    /// The file's extension is neither `.png` nor `.svg`.
    #[error("{}: the name must end in .png or .svg", .0.display())]
    Format(PathBuf),
    /// The sheet is too large, or the file cannot be written.
    #[error(transparent)]
    Image(#[from] ImageGridError),
    /// A map cannot be embedded in an SVG.
    #[error("a map cannot be encoded as PNG")]
    Encode(#[source] image::ImageError),
    /// The embedded font cannot be read.
    #[error("the built-in font is damaged: build the program again")]
    Font,
    /// Plotters could not draw the sheet.
    #[error("the sheet cannot be drawn")]
    Draw(#[source] Box<dyn StdError + Send + Sync>),
}

impl VisualizeError {
    fn draw(error: impl StdError + Send + Sync + 'static) -> Self {
        Self::Draw(Box::new(error))
    }
}

/// The file format of a sheet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Pixels only.
    Png,
    /// Maps as embedded PNGs, labels as text.
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
fn cell_side(resolution: u32) -> u32 {
    let side = resolution as usize;
    u32::try_from(side * visible_upscale(side, side)).unwrap_or(u32::MAX)
}

/// Rejects a sheet that would be too large before any encoder runs. The sheet has one row per image and encoder, with the
/// image of `resolution` pixels, two maps per anchor and two maps of components.
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
    // The image and two maps of components, plus two maps per anchor.
    let width = anchors.saturating_mul(2).saturating_add(3);
    let width = width.saturating_mul(side);
    if height.max(width) <= MAX_SIDE {
        return Ok(());
    }
    Err(too_large(
        path,
        format!(
            "{images} images, {encoders} encoders and {anchors} anchors at {side} pixels need {width} x {height} \
             pixels or more, but a picture may have at most {MAX_SIDE} pixels per side; use fewer of them or a \
             lower resolution"
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
    /// The extension is not supported, the sheet has more than 16384 pixels per side, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), VisualizeError> {
        let format = Format::of(path)?;
        let fonts = Fonts::embedded()?;
        let picture = layout::layout(self, &fonts)?;
        let (width, height) = (picture.width, picture.height);
        if width.max(height) as usize > MAX_SIDE {
            return Err(too_large(
                path,
                format!(
                    "it would have {width} x {height} pixels, but a picture may have at most {MAX_SIDE} pixels per side; \
                     use fewer images, encoders or anchors, or a lower resolution"
                ),
            ));
        }
        match format {
            Format::Png => {
                let pixels = drawing::pixels(&picture, &fonts)?;
                write_png(path, &pixels, (width, height), Compression::Best)?;
            }
            Format::Svg => {
                let text = drawing::svg(&picture, &fonts)?;
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
    fn the_format_is_determined_by_the_extension() {
        let format = |name: &str| Format::of(Path::new(name));
        assert_eq!(format("a/b.png").unwrap(), Format::Png);
        assert_eq!(format("B.SVG").unwrap(), Format::Svg);
        for name in ["a.gif", "png", "a.png/b", ".svg"] {
            let error = format(name).unwrap_err().to_string();
            assert!(error.contains(".png or .svg"), "{error}");
        }
    }

    #[test]
    fn small_images_are_enlarged_and_large_sheets_are_rejected() {
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
