//! Converts a decoded sample to the pixels of a batch: background, crop, flip.

use std::any::Any;
use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::{Deserialize, Serialize};

use crate::center_crop::adm_bytes;
use crate::dataset::Dataset;
use crate::error::{DataError, ImageError};
use crate::sample::{Image, Sample};

/// How images with an alpha channel are converted to RGB.
///
/// In a configuration: `"white"`, `"black"`, `"drop"`, or `{ rgb = [12, 34, 56] }`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Background {
    /// Blend the image with white.
    White,
    /// Blend the image with black.
    Black,
    /// Blend the image with this colour.
    Rgb([u8; 3]),
    /// Ignore alpha and keep the stored colours, as Pillow's `convert("RGB")` and upstream do.
    #[default]
    Drop,
}

impl Background {
    fn colour(self) -> Option<[u8; 3]> {
        match self {
            Background::White => Some([255; 3]),
            Background::Black => Some([0; 3]),
            Background::Rgb(colour) => Some(colour),
            Background::Drop => None,
        }
    }

    /// Returns the colours `[H, W, 3]` of an image on this background.
    ///
    /// Each byte is `(alpha * colour + (255 - alpha) * background) / 255`, rounded, as in Pillow's
    /// `paste` with a mask.
    pub fn blend(self, image: &Image) -> Cow<'_, [u8]> {
        let (Some(background), Some(alpha)) = (self.colour(), image.alpha()) else {
            return Cow::Borrowed(image.rgb());
        };
        let (pixels, _) = image.rgb().as_chunks::<3>();
        let blended = pixels.iter().zip(alpha).flat_map(|(pixel, &alpha)| {
            let mix = |channel: usize| mix(pixel[channel], background[channel], alpha);
            [mix(0), mix(1), mix(2)]
        });
        Cow::Owned(blended.collect())
    }
}

fn mix(colour: u8, background: u8, alpha: u8) -> u8 {
    let sum = u32::from(colour) * u32::from(alpha) + u32::from(background) * u32::from(255 - alpha);
    // At most 255, since the weights add up to 255.
    ((sum + 127) / 255) as u8
}

/// A sample in the form that a batch stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// `[3, R, R]`
    pub pixels: Vec<u8>,
    /// `[R, R]`
    pub mask: Option<Vec<u8>>,
    pub label: i64,
}

/// Reads a sample and renders it. A panic in a decoder counts as a corrupt sample.
pub(crate) fn read(
    dataset: &dyn Dataset,
    index: u64,
    resolution: u32,
    background: Background,
    flip: bool,
) -> Result<Rendered, DataError> {
    let corrupt = |reason| DataError::Sample {
        dataset: dataset.name().to_owned(),
        index,
        reason,
    };
    // Unwind safe: the only state that is shared with this closure is the data set, which `read` does not change.
    let rendered = catch_unwind(AssertUnwindSafe(|| {
        let sample = dataset.read(index)?;
        render(&sample, resolution, background, flip).map_err(|error| corrupt(error.to_string()))
    }));
    rendered.unwrap_or_else(|panic| {
        Err(corrupt(format!(
            "the decoder panicked: {}",
            message_of(panic.as_ref())
        )))
    })
}

fn render(
    sample: &Sample,
    resolution: u32,
    background: Background,
    flip: bool,
) -> Result<Rendered, ImageError> {
    let image = &sample.image;
    let (width, height) = (image.width(), image.height());
    let blended = background.blend(image);
    let rgb = adm_bytes(&blended, width, height, 3, resolution)?;
    let mask = match image.alpha() {
        Some(alpha) => {
            let crop = adm_bytes(alpha, width, height, 1, resolution)?;
            Some(planes::<1>(&crop, resolution as usize, flip))
        }
        None => None,
    };
    let pixels = planes::<3>(&rgb, resolution as usize, flip);
    Ok(Rendered {
        pixels,
        mask,
        label: sample.label,
    })
}

/// Converts `[side, side, C]` to `[C, side, side]`, mirrored left to right if `flip`.
fn planes<const C: usize>(bytes: &[u8], side: usize, flip: bool) -> Vec<u8> {
    let (pixels, _) = bytes.as_chunks::<C>();
    let mut planes = Vec::with_capacity(bytes.len());
    for channel in 0..C {
        for row in pixels.chunks_exact(side) {
            let values = row.iter().map(|pixel| pixel[channel]);
            if flip {
                planes.extend(values.rev())
            } else {
                planes.extend(values)
            }
        }
    }
    planes
}

/// The message of a panic.
fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blending_equals_pillow_for_all_bytes() {
        for colour in 0..=255_u8 {
            for alpha in 0..=255_u8 {
                for background in [0, 255, 77] {
                    // The macro `BLEND` of libImaging.
                    let sum = u32::from(colour) * u32::from(alpha)
                        + u32::from(background) * (255 - u32::from(alpha))
                        + 128;
                    let pillow = (((sum >> 8) + sum) >> 8) as u8;
                    assert_eq!(mix(colour, background, alpha), pillow);
                }
            }
        }
    }

    #[test]
    fn drop_keeps_the_stored_colours() {
        let image = Image::new(1, 1, vec![1, 2, 3], Some(vec![0])).unwrap();
        assert_eq!(*Background::Drop.blend(&image), [1, 2, 3]);
        assert_eq!(*Background::White.blend(&image), [255; 3]);
        assert_eq!(*Background::Rgb([9, 8, 7]).blend(&image), [9, 8, 7]);
        let opaque = Image::new(1, 1, vec![1, 2, 3], None).unwrap();
        assert_eq!(*Background::White.blend(&opaque), [1, 2, 3]);
    }

    #[test]
    fn planes_separate_channels_and_mirror_rows() {
        let bytes = [1, 10, 2, 20, 3, 30, 4, 40];
        assert_eq!(planes::<2>(&bytes, 2, false), [1, 2, 3, 4, 10, 20, 30, 40]);
        assert_eq!(planes::<2>(&bytes, 2, true), [2, 1, 4, 3, 20, 10, 40, 30]);
    }

    #[test]
    fn a_configuration_names_the_background() {
        #[derive(Deserialize)]
        struct Config {
            background: Background,
        }
        let read = |text| toml::from_str::<Config>(text).map(|config| config.background);
        assert_eq!(read("background = 'white'").unwrap(), Background::White);
        let rgb = read("background = { rgb = [1, 2, 3] }").unwrap();
        assert_eq!(rgb, Background::Rgb([1, 2, 3]));
        assert!(
            read("background = 'wite'")
                .unwrap_err()
                .to_string()
                .contains("white")
        );
    }
}
