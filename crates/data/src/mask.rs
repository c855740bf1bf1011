//! Reads foreground masks as upstream's spatial metrics do.
//!
//! Follows `load_and_filter_masks` of iREPA (`metrics/spatial_metrics_comparison.py`): the `.png`
//! files of a folder, sorted by name, are resized with Pillow's default filter, which is bicubic for
//! grey and nearest for palette and 1-bit images. Every nonzero value is foreground. The `metrics`
//! crate computes patch masks and selects the masks to use.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use png::{BitDepth, ColorType, Decoder, Transformations};
use rayon::prelude::*;

use crate::batch::check_resolution;
use crate::entries::sorted_entries;
use crate::error::{DataError, ImageError};
use crate::pillow::{Filter, resize};
use crate::sample::{check_buffer, check_size};

/// The kind of values in a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskKind {
    /// Grey levels, which can be interpolated: Pillow's mode `L`.
    Grey,
    /// Palette indices or bits, which cannot be interpolated: Pillow's modes `P` and `1`.
    Indexed,
}

impl MaskKind {
    fn filter(self) -> Filter {
        match self {
            MaskKind::Grey => Filter::Bicubic,
            MaskKind::Indexed => Filter::Nearest,
        }
    }
}

/// A foreground mask. Zero is background, any other value is foreground.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    width: u32,
    height: u32,
    values: Vec<u8>,
    kind: MaskKind,
}

impl Mask {
    /// Builds a mask from values `[H, W]`, row-major.
    ///
    /// # Errors
    ///
    /// [`ImageError::Size`] if a side is zero, [`ImageError::Buffer`] if the size of `values` does not
    /// match the shape.
    pub fn new(
        width: u32,
        height: u32,
        values: Vec<u8>,
        kind: MaskKind,
    ) -> Result<Self, ImageError> {
        check_buffer("mask", width, height, 1, values.len())?;
        Ok(Self {
            width,
            height,
            values,
            kind,
        })
    }

    /// Reads a PNG file with one channel of 1 to 8 bits.
    ///
    /// The values equal those of Pillow: palette indices are kept, and grey levels of fewer than 8 bits
    /// are scaled to 0..255.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] if the file cannot be opened, [`DataError::Image`] if it cannot be decoded as
    /// PNG, [`DataError::Mask`] if it has several channels or 16-bit values.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(DataError::io(path, "open the mask"))?;
        let image_error = |source| DataError::Image {
            path: path.to_path_buf(),
            source,
        };
        let failed = |reason: String| image_error(ImageError::Decode(reason));

        let mut decoder = Decoder::new(BufReader::new(file));
        decoder.set_transformations(Transformations::IDENTITY);
        let mut reader = decoder
            .read_info()
            .map_err(|error| failed(error.to_string()))?;
        let (colour, depth) = reader.output_color_type();
        let kind = match (colour, depth) {
            (_, BitDepth::Sixteen) => Err("it has 16-bit values".to_owned()),
            (ColorType::Indexed, _) | (ColorType::Grayscale, BitDepth::One) => {
                Ok(MaskKind::Indexed)
            }
            (ColorType::Grayscale, _) => Ok(MaskKind::Grey),
            (other, _) => Err(format!(
                "it has the channels {other:?}; a mask must have one channel"
            )),
        };
        let kind = kind.map_err(|problem| DataError::Mask {
            path: path.to_path_buf(),
            problem,
        })?;

        let size = reader.output_buffer_size();
        let size =
            size.ok_or_else(|| failed("it is too large for the address space".to_owned()))?;
        check_size(size as u64).map_err(image_error)?;
        let mut packed = vec![0; size];
        let frame = reader
            .next_frame(&mut packed)
            .map_err(|error| failed(error.to_string()))?;
        let values = unpack(
            &packed,
            frame.line_size,
            frame.width as usize,
            colour,
            depth,
        );
        Self::new(frame.width, frame.height, values, kind).map_err(image_error)
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The values, `[H, W]`; nonzero is foreground.
    pub fn values(&self) -> &[u8] {
        &self.values
    }

    /// The kind of the values.
    pub fn kind(&self) -> MaskKind {
        self.kind
    }

    /// Resizes the mask with the filter for its kind, bit-identical to Pillow 11.3.
    ///
    /// The bicubic filter rings: a pixel beside the foreground can become nonzero, and thus foreground.
    ///
    /// # Errors
    ///
    /// [`ImageError::Size`] if a side is zero.
    pub fn resize(&self, width: u32, height: u32) -> Result<Mask, ImageError> {
        let (from, filter) = ((self.width, self.height), self.kind.filter());
        let values = resize(&self.values, from.0, from.1, 1, width, height, filter)?;
        Ok(Mask {
            width,
            height,
            values,
            kind: self.kind,
        })
    }
}

/// Unpacks pixels of 1, 2, 4 or 8 bits into one byte each. Grey levels are scaled to 0..255.
fn unpack(
    packed: &[u8],
    line_size: usize,
    width: usize,
    colour: ColorType,
    depth: BitDepth,
) -> Vec<u8> {
    let bits = depth as usize;
    let largest = (0xff_u8) >> (8 - bits);
    let scale = if colour == ColorType::Grayscale {
        255 / largest
    } else {
        1
    };
    let line = |line: &[u8]| -> Vec<u8> {
        let pixels = line.iter().flat_map(|&byte| {
            (0..8 / bits).map(move |index| (byte >> (8 - bits * (index + 1))) & largest)
        });
        pixels.take(width).map(|value| value * scale).collect()
    };
    packed
        .chunks_exact(line_size.max(1))
        .flat_map(line)
        .collect()
}

/// Lists the `.png` files of a folder, sorted by name, without hidden files.
///
/// # Errors
///
/// [`DataError::Layout`] if there are none, [`DataError::Io`] if the folder cannot be listed.
pub fn list(folder: impl AsRef<Path>) -> Result<Vec<PathBuf>, DataError> {
    let folder = folder.as_ref();
    let entries = sorted_entries(folder)?.into_iter();
    let masks = entries.filter(|entry| !entry.is_dir && entry.name.ends_with(".png"));
    let masks: Vec<_> = masks.map(|entry| entry.path).collect();
    if masks.is_empty() {
        return Err(DataError::Layout {
            path: folder.to_path_buf(),
            problem: "has no mask".to_owned(),
            fix: "expected .png files",
        });
    }
    Ok(masks)
}

/// Reads all masks of a folder, sorted by name and resized to `resolution` x `resolution` pixels
/// (upstream: 256).
///
/// # Errors
///
/// Those of [`list`], and of [`Mask::open`] for the first mask that cannot be read.
pub fn read_folder(
    folder: impl AsRef<Path>,
    resolution: u32,
) -> Result<Vec<(PathBuf, Mask)>, DataError> {
    check_resolution(resolution)?;
    let read = |path: PathBuf| {
        let mask = Mask::open(&path)?.resize(resolution, resolution);
        let mask = mask.map_err(|source| DataError::Image {
            path: path.clone(),
            source,
        })?;
        Ok((path, mask))
    };
    let masks: Vec<_> = list(folder)?.into_par_iter().map(read).collect();
    masks.into_iter().collect()
}
