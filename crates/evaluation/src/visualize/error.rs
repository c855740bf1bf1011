//! Why a sheet of maps could not be drawn.

use std::error::Error as StdError;
use std::path::PathBuf;

use alignment::AlignmentError;
use data::{DataError, ImageError};
use encoders::EncoderError;
use metrics::MetricsError;
use report::image_grid::ImageGridError;
use tch::TchError;
use thiserror::Error;
use training::TrainError;

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
        anchor: String,
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
    pub(super) fn draw(error: impl StdError + Send + Sync + 'static) -> Self {
        Self::Draw(Box::new(error))
    }
}
