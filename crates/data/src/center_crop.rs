//! The centre crop of ADM, which is applied to all training images.
//!
//! Follows `center_crop_arr` of openai/guided-diffusion (`image_datasets.py`), which SiT, REPA and
//! iREPA (`ldm/utils.py`, `jit/util/crop.py`) also use.

use std::borrow::Cow;

use crate::error::ImageError;
use crate::pillow::{Filter, Output, resize, resize_window};
use crate::sample::Image;

/// Resizes an image and crops its centre to `size` x `size` pixels.
///
/// While the shorter side is at least `2 size`, both sides are halved (rounding down) with the box
/// filter. The shorter side is then resized to `size` with the bicubic filter, and the centre is
/// cropped. Small images are enlarged. All bytes equal those of Pillow 11.3 (see [`crate::pillow`]).
/// An alpha channel is processed separately, in the same steps as a grey image.
///
/// ```
/// use data::{Image, center_crop};
///
/// let image = Image::new(3, 2, vec![200; 18], None)?;
/// let crop = center_crop::adm(&image, 4)?;
/// assert_eq!((crop.width(), crop.height()), (4, 4));
/// assert!(crop.rgb().iter().all(|&byte| byte == 200));
/// # Ok::<(), data::ImageError>(())
/// ```
///
/// # Errors
///
/// [`ImageError::Size`] if `size` is 0.
pub fn adm(image: &Image, size: u32) -> Result<Image, ImageError> {
    let (width, height) = (image.width(), image.height());
    let rgb = adm_bytes(image.rgb(), width, height, 3, size)?;
    let alpha = match image.alpha() {
        Some(alpha) => Some(adm_bytes(alpha, width, height, 1, size)?.into_owned()),
        None => None,
    };
    Image::new(size, size, rgb.into_owned(), alpha)
}

/// [`adm`] on bytes `[height, width, channels]`.
pub(crate) fn adm_bytes(
    bytes: &[u8],
    mut width: u32,
    mut height: u32,
    channels: usize,
    size: u32,
) -> Result<Cow<'_, [u8]>, ImageError> {
    if size == 0 {
        return Err(ImageError::Size {
            width: size,
            height: size,
        });
    }
    let mut bytes = Cow::Borrowed(bytes);
    while width.min(height) / 2 >= size {
        let (half_width, half_height) = (width / 2, height / 2);
        let halved = resize(
            &bytes,
            width,
            height,
            channels,
            half_width,
            half_height,
            Filter::Box,
        )?;
        bytes = Cow::Owned(halved);
        (width, height) = (half_width, half_height);
    }

    let scale = f64::from(size) / f64::from(width.min(height));
    let scaled = |side: u32| (f64::from(side) * scale).round_ties_even() as u32;
    let (out_width, out_height) = (scaled(width), scaled(height));
    let (left, top) = (
        out_width.saturating_sub(size) / 2,
        out_height.saturating_sub(size) / 2,
    );
    let out = Output {
        width: out_width,
        height: out_height,
        columns: left..left + size,
        rows: top..top + size,
    };
    Ok(match bytes {
        Cow::Borrowed(bytes) => {
            resize_window(bytes, width, height, channels, &out, Filter::Bicubic)?
        }
        Cow::Owned(bytes) => {
            let window = resize_window(&bytes, width, height, channels, &out, Filter::Bicubic)?;
            Cow::Owned(window.into_owned())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crop_to_zero_pixels_is_refused() {
        let image = Image::new(1, 1, vec![0; 3], None).unwrap();
        assert_eq!(
            adm(&image, 0),
            Err(ImageError::Size {
                width: 0,
                height: 0
            })
        );
    }

    #[test]
    fn an_image_of_the_right_size_is_unchanged() {
        let image = Image::new(2, 2, (0..12).collect(), Some(vec![0, 9, 99, 255])).unwrap();
        assert_eq!(adm(&image, 2).unwrap(), image);
    }

    #[test]
    fn a_thin_strip_is_cropped_without_enlarging_all_of_it() {
        // The whole enlarged image would have 256 x 15 million pixels.
        let image = Image::new(1, 60_000, vec![7; 180_000], None).unwrap();
        let crop = adm(&image, 256).unwrap();
        assert!(crop.rgb().iter().all(|&byte| byte == 7));
    }
}
