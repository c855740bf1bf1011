//! Dense SIFT (Lowe 2004) as OpenCV computes it for fixed keypoints with angle -1, as upstream's
//! `SIFTOpenCVEncoder` does.
//!
//! All keypoints have the same window, so its spatial weights are a table ([`Window`]). The vote of a
//! pixel for the orientations does not depend on the keypoint, so it is computed once per image
//! ([`Votes`]). A descriptor is then a weighted sum of votes.

mod layout;
mod votes;
mod window;

use ndarray::{Array3, ArrayView4};

use super::{ClassicError, SIFT_DIM, STRIDE, encode_images, map_rgb, patch_grid};
use votes::Votes;
use window::Window;

/// Largest descriptor value, relative to the descriptor's norm.
const CLIP: f32 = 0.2;

/// Computes the SIFT tokens `[B, H/16 * W/16, 128]` of images `[B, 3, H, W]` whose sides are multiples of
/// 16. The values are integers 0..=255, laid out as (row, column, orientation).
///
/// The keypoints are at (8 + 16 j, 8 + 16 i) with size 16; their windows extend 61 pixels in each
/// direction. The images are bytes: upstream rounds resized values half to even before this step.
///
/// # Errors
///
/// The images are not RGB, or a side is not a multiple of 16.
pub fn sift_opencv(images: ArrayView4<'_, u8>) -> Result<Array3<f32>, ClassicError> {
    let (rows, columns) = patch_grid(&images, "siftopencv")?;
    let window = Window::new();
    Ok(encode_images(
        images,
        (rows * columns, SIFT_DIM),
        Vec::new,
        |bytes, image, tokens| {
            map_rgb(image, bytes, grey);
            let width = columns * STRIDE;
            let votes = Votes::new(&blur(bytes, width), width);
            for (t, token) in tokens.chunks_exact_mut(SIFT_DIM).enumerate() {
                let centre = |i: usize| STRIDE / 2 + STRIDE * i;
                let cells = window.describe(&votes, (centre(t / columns), centre(t % columns)));
                token.copy_from_slice(cells.as_flattened());
                quantise(token);
            }
        },
    ))
}

/// Grey value in OpenCV's fixed-point arithmetic.
fn grey(r: u8, g: u8, b: u8) -> u8 {
    ((9798 * u32::from(r) + 19235 * u32::from(g) + 3735 * u32::from(b) + (1 << 14)) >> 15) as u8
}

/// Increases the blur from the 0.5 pixels that SIFT assumes for a camera to 1.6 pixels (standard
/// deviations), with a separable Gaussian of 13 taps. The border is mirrored without repeating the outermost
/// pixel.
fn blur(grey: &[u8], width: usize) -> Vec<f32> {
    const REACH: usize = 6;
    let variance = 1.6 * 1.6 - 0.5 * 0.5;
    let taps: [f64; 2 * REACH + 1] = std::array::from_fn(|k| {
        let x = k as f64 - REACH as f64;
        (-x * x / (2.0 * variance)).exp()
    });
    let sum: f64 = taps.iter().sum();
    let taps = taps.map(|tap| (tap / sum) as f32);

    let height = grey.len() / width;
    let mut across = vec![0.0; grey.len()];
    let mut padded = vec![0.0; width + 2 * REACH];
    for (row, out) in grey.chunks_exact(width).zip(across.chunks_exact_mut(width)) {
        for (k, value) in padded.iter_mut().enumerate() {
            *value = f32::from(row[mirror(k as isize - REACH as isize, width)]);
        }
        for (k, tap) in taps.iter().enumerate() {
            for (out, v) in out.iter_mut().zip(&padded[k..]) {
                *out += tap * v;
            }
        }
    }
    let mut blurred = vec![0.0; grey.len()];
    for (y, out) in blurred.chunks_exact_mut(width).enumerate() {
        for (k, tap) in taps.iter().enumerate() {
            let source = mirror((y + k) as isize - REACH as isize, height) * width;
            for (out, v) in out.iter_mut().zip(&across[source..source + width]) {
                *out += tap * v;
            }
        }
    }
    blurred
}

/// Mirrors an index that may be outside of `0..side` into it.
fn mirror(index: isize, side: usize) -> usize {
    let last = side as isize - 1;
    (last - (last - index.abs()).abs()).unsigned_abs()
}

/// Clips the values at 0.2 of the norm and scales them to bytes, rounding half to even.
fn quantise(token: &mut [f32]) {
    let norm = |values: &[f32]| values.iter().map(|v| v * v).sum::<f32>().sqrt();
    let ceiling = CLIP * norm(token);
    token.iter_mut().for_each(|v| *v = v.min(ceiling));
    let scale = 512.0 / norm(token).max(f32::EPSILON);
    token
        .iter_mut()
        .for_each(|v| *v = (*v * scale).round_ties_even().clamp(0.0, 255.0));
}

#[cfg(test)]
mod tests;
