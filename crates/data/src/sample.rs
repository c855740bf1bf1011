//! Decoded images and labelled samples.

use std::borrow::Cow;
use std::fmt::Display;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use image::{
    DynamicImage, GrayAlphaImage, GrayImage, ImageDecoder, ImageFormat, ImageReader, RgbImage,
    RgbaImage,
};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use crate::error::{DataError, ImageError};
use crate::formats::format_of;
use crate::{jpeg, orientation};

/// An RGB image with an optional separate alpha channel, one byte per value.
///
/// The colours are not premultiplied by alpha. Both sides are at least 1 pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    width: u32,
    height: u32,
    rgb: Vec<u8>,
    alpha: Option<Vec<u8>>,
}

impl Image {
    /// Builds an image from raw bytes: `rgb` `[H, W, 3]`, `alpha` `[H, W]`, both row-major.
    ///
    /// # Errors
    ///
    /// [`ImageError::Size`] if a side is zero, [`ImageError::Buffer`] if the size of a buffer does
    /// not match the shape.
    pub fn new(
        width: u32,
        height: u32,
        rgb: Vec<u8>,
        alpha: Option<Vec<u8>>,
    ) -> Result<Self, ImageError> {
        check_buffer("rgb", width, height, 3, rgb.len())?;
        if let Some(alpha) = &alpha {
            check_buffer("alpha", width, height, 1, alpha.len())?;
        }
        Ok(Self {
            width,
            height,
            rgb,
            alpha,
        })
    }

    /// Decodes a PNG, JPEG or WebP file in memory; the format is detected from the bytes.
    ///
    /// The colours follow `convert("RGB")` of Pillow 11.3: grey and palette images become RGB, and 16-bit values
    /// become 8-bit (the upper byte; in a grey image without alpha, values above 255 are clipped to 255). Of an
    /// animation, the first frame is decoded. An orientation in the metadata is applied, as in Hugging Face
    /// `datasets`. PNG and lossless WebP give the same bytes as Pillow; JPEG decoders differ from each other by a
    /// few levels.
    ///
    /// # Errors
    ///
    /// [`ImageError::Decode`] if the format is not supported, the data is damaged or truncated, or the pixels
    /// would take more than 512 MiB. A JPEG whose coded data ends before its last block counts as truncated,
    /// whether or not an end marker follows. A JPEG that lacks only its end marker is accepted if Pillow accepts it.
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        Self::decode_as(bytes, false).map(|(image, _)| image)
    }

    /// As [`decode`](Self::decode), for the sample `index` of a data set. The check that a JPEG is complete runs only
    /// the first time: it takes about a third of the decoding time, and files do not shrink between two epochs.
    pub(crate) fn decode_sample(
        bytes: &[u8],
        index: u64,
        complete: &CompleteSamples,
    ) -> Result<Self, ImageError> {
        let (image, is_complete) = Self::decode_as(bytes, complete.contains(index))?;
        if is_complete {
            complete.insert(index);
        }
        Ok(image)
    }

    /// Returns the image, and whether the check for completeness can be skipped the next time.
    fn decode_as(bytes: &[u8], known_complete: bool) -> Result<(Self, bool), ImageError> {
        let (decoded, is_complete) = match format_of(bytes) {
            Ok(ImageFormat::Jpeg) => decode_jpeg(bytes, known_complete)?,
            Ok(format) => (decode_lossless(bytes, format)?, true),
            Err(content) => {
                let hint = match content.is_tiff() {
                    true => {
                        " (`datasets` stores images of the modes CMYK, P, F, I and others as TIFF: convert them with \
                         `image.convert(\"RGB\")` before `save_to_disk`)"
                    }
                    false => "",
                };
                return Err(ImageError::Decode(format!(
                    "the file is {content}; supported: PNG, JPEG and WebP{hint}"
                )));
            }
        };
        let (width, height) = (decoded.width(), decoded.height());
        let image = if decoded.color().has_alpha() {
            let rgba = decoded.into_rgba8().into_raw();
            let (pixels, _) = rgba.as_chunks::<4>();
            let rgb = pixels.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect();
            let alpha = pixels.iter().map(|&[_, _, _, a]| a).collect();
            Self::new(width, height, rgb, Some(alpha))
        } else {
            Self::new(width, height, decoded.into_rgb8().into_raw(), None)
        };
        Ok((image?, is_complete))
    }

    /// Reads and decodes an image file; see [`Image::decode`].
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] if the file cannot be read, [`DataError::Image`] if it cannot be decoded.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(DataError::io(path, "read the image"))?;
        Self::decode(&bytes).map_err(|source| DataError::Image {
            path: path.to_path_buf(),
            source,
        })
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Colours, `[H, W, 3]`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// Opacity, `[H, W]`, 0 (background) to 255 (foreground), if the image has an alpha channel.
    pub fn alpha(&self) -> Option<&[u8]> {
        self.alpha.as_deref()
    }

    /// Returns the colours `[H, W, 3]` and the opacity `[H, W]`.
    pub fn into_parts(self) -> (Vec<u8>, Option<Vec<u8>>) {
        (self.rgb, self.alpha)
    }
}

/// The samples whose files are known to be complete, one bit per sample.
#[derive(Debug)]
pub(crate) struct CompleteSamples(Vec<AtomicU64>);

impl CompleteSamples {
    /// An empty set for a data set of `len` samples.
    pub(crate) fn new(len: u64) -> Self {
        Self((0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn contains(&self, index: u64) -> bool {
        let word = self.0.get((index / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (index % 64) & 1 == 1)
    }

    fn insert(&self, index: u64) {
        if let Some(word) = self.0.get((index / 64) as usize) {
            word.fetch_or(1 << (index % 64), Ordering::Relaxed);
        }
    }
}

fn failed(error: impl Display) -> ImageError {
    ImageError::Decode(error.to_string())
}

/// Decodes a JPEG. Also returns whether the check for completeness can be skipped the next time.
fn decode_jpeg(bytes: &[u8], known_complete: bool) -> Result<(DynamicImage, bool), ImageError> {
    let orientation = orientation::of_file(bytes, ImageFormat::Jpeg);
    let pixels_end = match known_complete {
        true => None,
        false => jpeg::check_complete(bytes).map_err(|fault| failed(fault.reason()))?,
    };
    let bytes = match pixels_end {
        None => Cow::Borrowed(bytes),
        Some(end) => Cow::Owned([bytes.get(..end).unwrap_or(bytes), &jpeg::END].concat()),
    };
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes.as_ref()), options);
    decoder.decode_headers().map_err(failed)?;
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    if grey {
        decoder.set_options(options.jpeg_set_out_colorspace(ColorSpace::Luma));
    }
    let (width, height) = decoder.dimensions().unwrap_or_default();
    let (width, height) = (width as u32, height as u32);
    let channels = if grey { 1 } else { 3 };
    let size = u64::from(width) * u64::from(height) * channels;
    check_size(size)?;
    let mut pixels = vec![0; size as usize];
    decoder.decode_into(&mut pixels).map_err(failed)?;
    let decoded = match grey {
        true => GrayImage::from_raw(width, height, pixels).map(DynamicImage::from),
        false => RgbImage::from_raw(width, height, pixels).map(DynamicImage::from),
    };
    let mut decoded = decoded.ok_or(ImageError::Size { width, height })?;
    decoded.apply_orientation(orientation);
    Ok((decoded, pixels_end.is_none()))
}

fn decode_lossless(bytes: &[u8], format: ImageFormat) -> Result<DynamicImage, ImageError> {
    let reader = ImageReader::with_format(io::Cursor::new(bytes), format);
    let decoder = reader.into_decoder().map_err(failed)?;
    check_size(decoder.total_bytes())?;
    let decoded = DynamicImage::from_decoder(decoder).map_err(failed)?;
    let mut decoded = match format {
        ImageFormat::Png => to_8_bits(decoded, is_grey_png(bytes)),
        _ => decoded,
    };
    decoded.apply_orientation(orientation::of_file(bytes, format));
    Ok(decoded)
}

/// Whether a PNG has colour type 0, whose 16-bit values Pillow clips in the conversion to RGB.
fn is_grey_png(bytes: &[u8]) -> bool {
    const COLOUR_TYPE: usize = 25;
    bytes.get(COLOUR_TYPE) == Some(&0)
}

/// Converts 16-bit values to 8-bit as Pillow does. `grey` is set if the file has no alpha channel of its own and is
/// grey; the decoder may still have added an alpha channel for one transparent grey level.
fn to_8_bits(image: DynamicImage, grey: bool) -> DynamicImage {
    let upper = |value: u16| (value >> 8) as u8;
    let clipped = |value: u16| value.min(255) as u8;
    let (width, height) = (image.width(), image.height());
    let converted = match &image {
        DynamicImage::ImageLuma16(pixels) => {
            let values = pixels.iter().copied().map(clipped).collect();
            GrayImage::from_raw(width, height, values).map(DynamicImage::from)
        }
        DynamicImage::ImageLumaA16(pixels) => {
            let (pixels, _) = pixels.as_chunks::<2>();
            let level = |value| if grey { clipped(value) } else { upper(value) };
            let values = pixels.iter().flat_map(|&[l, a]| [level(l), upper(a)]);
            GrayAlphaImage::from_raw(width, height, values.collect()).map(DynamicImage::from)
        }
        DynamicImage::ImageRgb16(pixels) => {
            let values = pixels.iter().copied().map(upper).collect();
            RgbImage::from_raw(width, height, values).map(DynamicImage::from)
        }
        DynamicImage::ImageRgba16(pixels) => {
            let values = pixels.iter().copied().map(upper).collect();
            RgbaImage::from_raw(width, height, values).map(DynamicImage::from)
        }
        _ => None,
    };
    converted.unwrap_or(image)
}

/// Checks that the decoded pixels have a plausible size, because a damaged header can claim any size.
pub(crate) fn check_size(bytes: u64) -> Result<(), ImageError> {
    const MAX_BYTES: u64 = 512 << 20;
    if bytes <= MAX_BYTES {
        return Ok(());
    }
    Err(ImageError::Decode(format!(
        "its pixels take {bytes} bytes; allowed: at most {MAX_BYTES}"
    )))
}

/// Checks the length of a buffer `[height, width, channels]`.
pub(crate) fn check_buffer(
    what: &'static str,
    width: u32,
    height: u32,
    channels: usize,
    found: usize,
) -> Result<(), ImageError> {
    let pixels = (width as usize).checked_mul(height as usize);
    match pixels.and_then(|pixels| pixels.checked_mul(channels)) {
        None | Some(0) => Err(ImageError::Size { width, height }),
        Some(expected) if expected != found => Err(ImageError::Buffer {
            what,
            width,
            height,
            found,
            expected,
        }),
        Some(_) => Ok(()),
    }
}

/// One decoded sample of a [`Dataset`](crate::Dataset).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Index in the data set, which identifies the sample.
    pub index: u64,
    /// The full image, neither cropped nor resized.
    pub image: Image,
    /// Class index, in `0..class_names().len()`.
    pub label: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_the_wrong_size_are_refused() {
        assert_eq!(
            Image::new(2, 2, vec![0; 11], None).unwrap_err().to_string(),
            "rgb of a 2x2 image has 11 bytes; expected 12"
        );
        assert_eq!(
            Image::new(2, 2, vec![0; 12], Some(vec![0; 3]))
                .unwrap_err()
                .to_string(),
            "alpha of a 2x2 image has 3 bytes; expected 4"
        );
        assert!(matches!(
            Image::new(0, 2, vec![], None),
            Err(ImageError::Size {
                width: 0,
                height: 2
            })
        ));
    }

    #[test]
    fn a_header_that_claims_too_many_pixels_is_refused() {
        let mut png = Vec::new();
        let mut encoder = png::Encoder::new(&mut png, 60_000, 60_000);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().unwrap();
        writer.write_chunk(png::chunk::IDAT, &[0; 8]).unwrap();
        drop(writer);
        let error = Image::decode(&png).unwrap_err().to_string();
        assert!(error.contains("10800000000 bytes"), "{error}");
    }

    #[test]
    fn bytes_that_are_not_an_image_are_refused() {
        for bytes in [
            &b""[..],
            b"GIF89a",
            b"\x89PNG\r\n\x1a\n",
            &[0xff, 0xd8, 0xff, 0xe0],
        ] {
            assert!(
                matches!(Image::decode(bytes), Err(ImageError::Decode(_))),
                "{bytes:?}"
            );
        }
    }
}
