//! Writes a sheet of maps.

use std::io::Write;
use std::path::Path;

use report::image_grid::{Compression, ImageGridError, MAX_SIDE, write_png};

use super::error::VisualizeError;
use super::font::Fonts;
use super::sheet::{Sheet, cell_side};
use super::{drawing, layout};

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
