//! Writes samples as PNG files: one image, or a grid of images with small gaps.
//!
//! The pixels of samples are copied, not drawn, so that this module needs no drawing library, only an encoder.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, ImageError};
use ndarray::{ArrayView3, ArrayView4};

/// Side in pixels that small samples are enlarged to.
const VISIBLE_SIDE: usize = 128;
/// Maximum side of a picture in pixels. Larger pictures are rejected as a mistake of the caller.
pub const MAX_SIDE: usize = 16_384;

/// The layout of images in a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GridLayout {
    /// Images per row; the last row may be shorter.
    pub columns: usize,
    /// Each pixel becomes `upscale` x `upscale` pixels.
    pub upscale: usize,
    /// Width of the white gaps between images, in pixels of the file.
    pub gap: usize,
}

impl GridLayout {
    /// Returns a nearly square grid for `count` images of `height` x `width` pixels. Smaller images are enlarged by an
    /// integer factor to at most 128 pixels.
    pub fn for_images(count: usize, height: usize, width: usize) -> Self {
        let columns = (1..=count)
            .find(|columns| columns * columns >= count)
            .unwrap_or(1);
        Self {
            columns,
            upscale: visible_upscale(height, width),
            gap: 4,
        }
    }
}

/// Returns the largest integer factor that enlarges an image of `height` x `width` pixels to at most 128 pixels; at least
/// 1.
pub fn visible_upscale(height: usize, width: usize) -> usize {
    (VISIBLE_SIDE / height.max(width).max(1)).max(1)
}

/// Why a PNG could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ImageGridError {
    /// The images or the layout are invalid.
    #[error("cannot draw {}: {problem}", path.display())]
    Shape {
        /// The requested file.
        path: PathBuf,
        /// What was found and what is allowed.
        problem: String,
    },
    /// The file could not be written; an existing file is unchanged.
    #[error("cannot write {}: check that its folder exists, is writable and has space left", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
}

/// Writes RGB `images` (`[N, 3, H, W]`, 0 to 255) as one PNG, row by row in their order. The file appears
/// complete or not at all.
///
/// # Errors
/// [`ImageGridError::Shape`] if there are no images, the channel count is not 3, columns or upscale are zero, or a side
/// exceeds 16384 pixels; [`ImageGridError::Write`] if the file cannot be written.
///
/// # Example
/// ```
/// use ndarray::Array4;
/// use report::image_grid::{GridLayout, write_grid};
///
/// let folder = tempfile::tempdir()?;
/// let images = Array4::<u8>::zeros((6, 3, 64, 64));
/// let layout = GridLayout::for_images(6, 64, 64);
/// write_grid(&folder.path().join("grid.png"), images.view(), layout)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_grid(
    path: &Path,
    images: ArrayView4<'_, u8>,
    layout: GridLayout,
) -> Result<(), ImageGridError> {
    let (count, channels, height, width) = images.dim();
    let GridLayout {
        columns,
        upscale,
        gap,
    } = layout;
    let shape_error = |problem: String| ImageGridError::Shape {
        path: path.to_owned(),
        problem,
    };
    if count == 0 || channels != 3 || height == 0 || width == 0 {
        return Err(shape_error(format!(
            "the images have shape {:?}, expected [N, 3, H, W] without zeros",
            images.shape()
        )));
    }
    if columns == 0 || upscale == 0 {
        return Err(shape_error(format!(
            "columns ({columns}) and upscale ({upscale}) must be at least 1"
        )));
    }
    let columns = columns.min(count);
    let rows = count.div_ceil(columns);
    let side = |cells: usize, pixels: usize| {
        let images = cells.checked_mul(pixels)?.checked_mul(upscale)?;
        let gaps = (cells - 1).checked_mul(gap)?;
        images.checked_add(gaps).filter(|side| *side <= MAX_SIDE)
    };
    let (Some(grid_width), Some(grid_height)) = (side(columns, width), side(rows, height)) else {
        return Err(shape_error(format!(
            "{rows} x {columns} images of {height} x {width} pixels, enlarged {upscale} times, \
             exceed {MAX_SIDE} pixels per side; write fewer images or lower the upscale"
        )));
    };

    let mut pixels = vec![u8::MAX; grid_width * grid_height * 3];
    for (index, image) in images.outer_iter().enumerate() {
        let top = index / columns * (height * upscale + gap);
        let left = index % columns * (width * upscale + gap);
        let area = pixels
            .chunks_exact_mut(grid_width * 3)
            .skip(top)
            .take(height * upscale);
        for (y, line) in area.enumerate() {
            let line = line.chunks_exact_mut(3).skip(left).take(width * upscale);
            for (x, pixel) in line.enumerate() {
                for (channel, value) in pixel.iter_mut().enumerate() {
                    *value = image[[channel, y / upscale, x / upscale]];
                }
            }
        }
    }
    // Both sides are at most MAX_SIDE.
    let size = (grid_width as u32, grid_height as u32);
    write_png(path, &pixels, size, Compression::Best)
}

/// Writes one RGB `image` (`[3, H, W]`, 0 to 255), each pixel enlarged to `upscale` x `upscale`.
///
/// # Errors
/// As [`write_grid`].
pub fn write_image(
    path: &Path,
    image: ArrayView3<'_, u8>,
    upscale: usize,
) -> Result<(), ImageGridError> {
    let layout = GridLayout {
        columns: 1,
        upscale,
        gap: 0,
    };
    write_grid(path, image.insert_axis(ndarray::Axis(0)), layout)
}

/// The compression level of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Best compression, for pictures that are viewed.
    Best,
    /// Fast compression, for many samples, which compress little in any case.
    Fast,
}

/// Writes RGB bytes `[height, width, 3]` as a PNG file. The file appears complete or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write_png(
    path: &Path,
    rgb: &[u8],
    (width, height): (u32, u32),
    compression: Compression,
) -> Result<(), ImageGridError> {
    let compression = match compression {
        Compression::Best => CompressionType::Best,
        Compression::Fast => CompressionType::Fast,
    };
    files::write(path, |file| {
        // Enlarged images repeat their lines, which only the adaptive filters exploit.
        PngEncoder::new_with_quality(&mut *file, compression, FilterType::Adaptive)
            .write_image(rgb, width, height, ExtendedColorType::Rgb8)
            .map_err(|error| match error {
                ImageError::IoError(source) => source,
                other => io::Error::other(other),
            })?;
        file.flush()
    })
    .map_err(|source| ImageGridError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array3, Array4};

    const WHITE: [u8; 3] = [255; 3];

    fn numbered(count: usize) -> Array4<u8> {
        Array4::from_shape_fn((count, 3, 2, 2), |(n, c, y, x)| {
            (n * 20 + c * 5 + y * 2 + x) as u8
        })
    }

    #[test]
    fn images_are_arranged_row_by_row_with_gaps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grid.png");
        let layout = GridLayout {
            columns: 2,
            upscale: 3,
            gap: 1,
        };
        write_grid(&path, numbered(3).view(), layout).unwrap();
        let grid = image::open(&path).unwrap().to_rgb8();
        assert_eq!(grid.dimensions(), (13, 13));
        assert_eq!(grid.get_pixel(0, 0).0, [0, 5, 10]);
        assert_eq!(grid.get_pixel(2, 2).0, [0, 5, 10]);
        assert_eq!(grid.get_pixel(3, 0).0, [1, 6, 11]);
        assert_eq!(grid.get_pixel(6, 0).0, WHITE);
        assert_eq!(grid.get_pixel(7, 0).0, [20, 25, 30]);
        assert_eq!(grid.get_pixel(0, 7).0, [40, 45, 50]);
        assert_eq!(grid.get_pixel(7, 7).0, WHITE, "the fourth place is empty");
    }

    #[test]
    fn one_image_keeps_its_pixels() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.png");
        let image = Array3::from_shape_fn((3, 4, 5), |(c, y, x)| (c * 50 + y * 5 + x) as u8);
        write_image(&path, image.view(), 1).unwrap();
        let read = image::open(&path).unwrap().to_rgb8();
        assert_eq!(read.dimensions(), (5, 4));
        assert_eq!(read.get_pixel(4, 3).0, [19, 69, 119]);
    }

    #[test]
    fn small_samples_are_enlarged_and_large_ones_are_not() {
        assert_eq!(visible_upscale(64, 64), 2);
        assert_eq!(visible_upscale(32, 16), 4);
        assert_eq!(visible_upscale(256, 256), 1);
        assert_eq!(visible_upscale(0, 0), 128);
        assert_eq!(GridLayout::for_images(10, 64, 64).columns, 4);
        assert_eq!(GridLayout::for_images(0, 64, 64).columns, 1);
    }

    #[test]
    fn invalid_shapes_and_layouts_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grid.png");
        let layout = GridLayout::for_images(1, 2, 2);
        for images in [
            Array4::<u8>::zeros((0, 3, 2, 2)),
            Array4::zeros((1, 4, 2, 2)),
            Array4::zeros((1, 3, 0, 2)),
        ] {
            let error = write_grid(&path, images.view(), layout).unwrap_err();
            assert!(matches!(error, ImageGridError::Shape { .. }), "{error}");
        }
        for layout in [
            GridLayout {
                columns: 0,
                ..layout
            },
            GridLayout {
                upscale: 0,
                ..layout
            },
            GridLayout {
                upscale: usize::MAX,
                ..layout
            },
        ] {
            let error = write_grid(&path, numbered(1).view(), layout).unwrap_err();
            assert!(matches!(error, ImageGridError::Shape { .. }), "{error}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_path_that_cannot_be_written_is_named() {
        let path = Path::new("/nowhere/grid.png");
        let layout = GridLayout::for_images(1, 2, 2);
        let error = write_grid(path, numbered(1).view(), layout).unwrap_err();
        assert!(matches!(error, ImageGridError::Write { .. }));
        assert!(error.to_string().contains("/nowhere/grid.png"), "{error}");
    }
}
