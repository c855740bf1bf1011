//! An image in memory, and a sample of a data set.

use std::fs;
use std::io;
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use crate::error::{DataError, ImageError};

/// RGB bytes, with the alpha channel apart.
///
/// The colours are not multiplied by alpha. Both sides are at least 1 pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    width: u32,
    height: u32,
    rgb: Vec<u8>,
    alpha: Option<Vec<u8>>,
}

impl Image {
    /// An image from raw bytes: `rgb` `[H, W, 3]`, `alpha` `[H, W]`, both row-major.
    ///
    /// # Errors
    ///
    /// [`ImageError::Size`] if a side is zero, [`ImageError::Buffer`] if a buffer has another size
    /// than the shape.
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

    /// Decodes a PNG, JPEG or WebP file held in memory; the format is read from the bytes.
    ///
    /// Grey and palette images become RGB, 16 bits become 8, the first frame of an animation is
    /// taken, and an EXIF orientation is applied (as Hugging Face `datasets` does). PNG and lossless
    /// WebP give the same bytes as Pillow; JPEG decoders differ from each other by a few levels.
    ///
    /// # Errors
    ///
    /// [`ImageError::Decode`] if the format is another one, the data is damaged or cut short, or
    /// the pixels would take more than 512 MiB.
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        let failed = |error: image::ImageError| ImageError::Decode(error.to_string());
        let reader = ImageReader::new(io::Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|error| ImageError::Decode(error.to_string()))?;
        match reader.format() {
            Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP) => {}
            other => {
                let found = other.map_or("unknown format".to_owned(), |it| format!("{it:?}"));
                let length = bytes.len();
                let reason = format!("{length} bytes of {found}; PNG, JPEG and WebP are read");
                return Err(ImageError::Decode(reason));
            }
        }
        let mut decoder = reader.into_decoder().map_err(failed)?;
        check_size(decoder.total_bytes())?;
        let orientation = decoder.orientation().map_err(failed)?;
        let mut decoded = DynamicImage::from_decoder(decoder).map_err(failed)?;
        decoded.apply_orientation(orientation);

        let (width, height) = (decoded.width(), decoded.height());
        if decoded.color().has_alpha() {
            let rgba = decoded.into_rgba8().into_raw();
            let (pixels, _) = rgba.as_chunks::<4>();
            let rgb = pixels.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect();
            let alpha = pixels.iter().map(|&[_, _, _, a]| a).collect();
            Self::new(width, height, rgb, Some(alpha))
        } else {
            Self::new(width, height, decoded.into_rgb8().into_raw(), None)
        }
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

    /// Opacity, `[H, W]`, 0 (background) to 255 (foreground), if the file has it.
    pub fn alpha(&self) -> Option<&[u8]> {
        self.alpha.as_deref()
    }

    /// The colours `[H, W, 3]` and the opacity `[H, W]`.
    pub fn into_parts(self) -> (Vec<u8>, Option<Vec<u8>>) {
        (self.rgb, self.alpha)
    }
}

/// Checks that the decoded pixels are of a size that some image can have: a damaged header can claim
/// any.
pub(crate) fn check_size(bytes: u64) -> Result<(), ImageError> {
    const MOST: u64 = 512 << 20;
    if bytes <= MOST {
        return Ok(());
    }
    Err(ImageError::Decode(format!(
        "its pixels take {bytes} bytes, and at most {MOST} are read"
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
    /// Its place in the data set, which identifies it.
    pub index: u64,
    /// The whole image, neither cropped nor resized.
    pub image: Image,
    /// Class, in `0..class_names().len()`.
    pub label: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_the_wrong_size_are_refused() {
        assert_eq!(
            Image::new(2, 2, vec![0; 11], None).unwrap_err().to_string(),
            "rgb of a 2x2 image holds 11 bytes, and needs 12"
        );
        assert_eq!(
            Image::new(2, 2, vec![0; 12], Some(vec![0; 3]))
                .unwrap_err()
                .to_string(),
            "alpha of a 2x2 image holds 3 bytes, and needs 4"
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
    fn bytes_that_are_no_image_are_refused() {
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
