//! Hand-crafted features, without libtorch: dense HOG and two variants of dense SIFT, as in the study, and two controls
//! that describe nothing but the pixels of each patch.
//!
//! Pure functions map RGB images `[B, 3, H, W]` with values 0..=255 (bytes or floats) to patch
//! tokens `[B, T, D]` in float32. The tokens are in row-major order: one per cell of the configured grid for HOG, and
//! one per patch of 16 x 16 pixels for the others. Images are processed in parallel on rayon's
//! pool. One thread processes each image, so the bits do not depend on the number of threads.
//!
//! - [`hog()`]: upstream's encoder type `hog` (scikit-image's HOG);
//! - [`sift()`]: upstream's `sift` (kornia's SIFT with a dominant orientation);
//! - [`sift_opencv()`]: upstream's `siftopencv` (OpenCV's SIFT at angle -1);
//! - [`pixels()`]: mean colours of a patch's cells;
//! - [`dct()`]: the lowest frequencies of a patch.
//!
//! ```
//! use encoders::classic::{HogConfig, hog, sift};
//! use ndarray::Array4;
//!
//! let images = Array4::<u8>::from_shape_fn((2, 3, 64, 64), |(b, c, y, x)| (b + c + x * y) as u8);
//! let tokens = hog(images.view(), &HogConfig::default())?;
//! assert_eq!(tokens.dim(), (2, 256, 128));
//! assert_eq!(sift(images.view())?.dim(), (2, 16, 128));
//! # Ok::<(), encoders::classic::ClassicError>(())
//! ```

mod angle;
mod hog;
mod patch;
mod sift;
mod sift_opencv;

use ndarray::{Array3, ArrayView3, ArrayView4, Axis};
use rayon::prelude::*;
use thiserror::Error;

pub use hog::{HogConfig, hog};
pub use patch::{DCT_DIM, PIXELS_DIM, dct, pixels};
pub use sift::sift;
pub use sift_opencv::sift_opencv;

/// Side in pixels of the patch that one token of SIFT, [`pixels()`] or [`dct()`] covers.
pub const STRIDE: usize = 16;

/// Width of a SIFT token: 4 x 4 spatial cells with 8 orientations each.
pub const SIFT_DIM: usize = 128;

/// Errors of the classic encoders.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClassicError {
    /// The images are not RGB.
    #[error("images must have 3 channels, [B, 3, H, W]; found {found}")]
    Channels {
        /// Number of channels found.
        found: usize,
    },
    /// The image size does not suit the encoder.
    #[error("{encoder} does not support {height}x{width} images: {needed}")]
    Size {
        /// The encoder's name.
        encoder: &'static str,
        /// Height found.
        height: usize,
        /// Width found.
        width: usize,
        /// What the encoder needs.
        needed: String,
    },
    /// A HOG configuration cannot be parsed or is contradictory.
    #[error("HOG configuration `{text}`: {reason}")]
    HogConfig {
        /// Text of the configuration.
        text: String,
        /// What is wrong and what is allowed.
        reason: String,
    },
}

/// A pixel value 0..=255: a byte, or a float after resizing.
pub trait Pixel: Copy + Send + Sync {
    /// The value as float32.
    fn value(self) -> f32;
}

impl Pixel for u8 {
    #[inline]
    fn value(self) -> f32 {
        f32::from(self)
    }
}

impl Pixel for f32 {
    #[inline]
    fn value(self) -> f32 {
        self
    }
}

/// Returns the height and width of a batch of RGB images; fails if there are not 3 channels.
fn image_size<P>(images: &ArrayView4<'_, P>) -> Result<(usize, usize), ClassicError> {
    let (_, channels, height, width) = images.dim();
    if channels != 3 {
        return Err(ClassicError::Channels { found: channels });
    }
    Ok((height, width))
}

/// Returns the rows and columns of patches of [`STRIDE`] pixels; fails if they do not cover the images exactly.
fn patch_grid<P>(
    images: &ArrayView4<'_, P>,
    encoder: &'static str,
) -> Result<(usize, usize), ClassicError> {
    let (height, width) = image_size(images)?;
    let covers = |side: usize| side > 0 && side.is_multiple_of(STRIDE);
    if !covers(height) || !covers(width) {
        return Err(ClassicError::Size {
            encoder,
            height,
            width,
            needed: format!("both sides must be multiples of {STRIDE}"),
        });
    }
    Ok((height / STRIDE, width / STRIDE))
}

/// Runs `encode` on all images in parallel. Its arguments are scratch memory, which it must write
/// before reading, the image `[3, H, W]`, and the image's zeroed tokens `[T, D]`, row-major.
fn encode_images<P: Pixel, S>(
    images: ArrayView4<'_, P>,
    (tokens, dim): (usize, usize),
    scratch: impl Fn() -> S + Send + Sync,
    encode: impl Fn(&mut S, ArrayView3<'_, P>, &mut [f32]) + Send + Sync,
) -> Array3<f32> {
    let mut out = Array3::zeros((images.len_of(Axis(0)), tokens, dim));
    if let Some(values) = out.as_slice_mut() {
        values
            .par_chunks_exact_mut(tokens * dim)
            .enumerate()
            .for_each_init(scratch, |scratch, (b, tokens)| {
                encode(scratch, images.index_axis(Axis(0), b), tokens);
            });
    }
    out
}

/// Fills `out` with `convert(r, g, b)` of every pixel of an image `[3, H, W]`, row-major.
fn map_rgb<P: Pixel, T>(
    image: ArrayView3<'_, P>,
    out: &mut Vec<T>,
    convert: impl Fn(P, P, P) -> T,
) {
    out.clear();
    let channel = |c| image.index_axis_move(Axis(0), c);
    let (red, green, blue) = (channel(0), channel(1), channel(2));
    out.extend(
        red.iter()
            .zip(green)
            .zip(blue)
            .map(|((&r, &g), &b)| convert(r, g, b)),
    );
}
