//! Controls: the pixels of each patch, without any feature, and their cosine transform.

use std::f32::consts::PI;

use ndarray::{Array3, ArrayView3, ArrayView4};

use super::{ClassicError, Pixel, STRIDE, encode_images, patch_grid};

/// Number of cells along a side of a patch, of which [`pixels`] returns the means.
const CELLS: usize = 4;

/// Side of a cell in pixels.
const CELL: usize = STRIDE / CELLS;

/// Width of a token of [`pixels`]: 3 channels of 4 x 4 cells.
pub const PIXELS_DIM: usize = 3 * CELLS * CELLS;

/// Number of frequencies that [`dct`] keeps of each channel, along a side: luma, and twice chroma.
const FREQUENCIES: [usize; 3] = [8, 4, 4];

/// Width of a token of [`dct`]: 8 x 8 coefficients of luma and 4 x 4 of each chroma channel.
pub const DCT_DIM: usize = {
    let [luma, blue, red] = FREQUENCIES;
    luma * luma + blue * blue + red * red
};

/// Luma and chroma of JPEG (BT.601, full range) from red, green and blue.
const YCBCR: [[f32; 3]; 3] = [
    [0.299, 0.587, 0.114],
    [-0.168_736, -0.331_264, 0.5],
    [0.5, -0.418_688, -0.081_312],
];

/// Computes tokens `[B, H/16 * W/16, 48]` of images `[B, 3, H, W]` whose sides are multiples of 16: the colours of each
/// patch of 16 x 16 pixels, reduced to 4 x 4 by means, in -1..=1, laid out as (channel, row, column).
///
/// # Errors
///
/// The images are not RGB, or a side is not a multiple of 16.
pub fn pixels<P: Pixel>(images: ArrayView4<'_, P>) -> Result<Array3<f32>, ClassicError> {
    encode_patches(images, "pixels", PIXELS_DIM, |patch, token| {
        let cells = token.chunks_exact_mut(CELLS * CELLS);
        for (channel, cells) in patch.iter().zip(cells) {
            for (index, mean) in cells.iter_mut().enumerate() {
                let (top, left) = (index / CELLS * CELL, index % CELLS * CELL);
                let rows = &channel[top..top + CELL];
                let sum: f32 = rows.iter().flat_map(|row| &row[left..left + CELL]).sum();
                *mean = sum / (CELL * CELL) as f32 / 127.5 - 1.0;
            }
        }
    })
}

/// Computes tokens `[B, H/16 * W/16, 96]` of images `[B, 3, H, W]` whose sides are multiples of 16: the lowest
/// frequencies of each patch of 16 x 16 pixels.
///
/// The patch is converted to luma and chroma in -1..=1 as in JPEG, and each channel is transformed by the orthonormal
/// two-dimensional DCT-II, divided by 16, so that the first coefficient is the channel's mean. The token has the lowest
/// 8 x 8 coefficients of luma, then 4 x 4 of each chroma channel, rows (vertical frequencies) first.
///
/// # Errors
///
/// The images are not RGB, or a side is not a multiple of 16.
pub fn dct<P: Pixel>(images: ArrayView4<'_, P>) -> Result<Array3<f32>, ClassicError> {
    let waves = waves();
    encode_patches(images, "dct", DCT_DIM, |patch, token| {
        let mut rest = token;
        for (channel, (weights, count)) in YCBCR.iter().zip(FREQUENCIES).enumerate() {
            // Only luma has an offset: grey has no chroma.
            let offset = if channel == 0 { 1.0 } else { 0.0 };
            let (coefficients, others) = rest.split_at_mut(count * count);
            rest = others;
            // Along the rows first: `[16 rows, count]`.
            let mut partial = [[0.0; FREQUENCIES[0]]; STRIDE];
            for (y, partial) in partial.iter_mut().enumerate() {
                for x in 0..STRIDE {
                    let colour = weights.iter().zip(patch).map(|(w, c)| w * c[y][x]);
                    let value = colour.sum::<f32>() / 127.5 - offset;
                    for (sum, wave) in partial[..count].iter_mut().zip(&waves) {
                        *sum += value * wave[x];
                    }
                }
            }
            for (row, wave) in coefficients.chunks_exact_mut(count).zip(&waves) {
                for (x, coefficient) in row.iter_mut().enumerate() {
                    let products = partial.iter().zip(wave).map(|(row, w)| row[x] * w);
                    *coefficient = products.sum();
                }
            }
        }
    })
}

/// The rows of the orthonormal DCT-II of [`STRIDE`] samples, lowest frequency first, each divided by 4: the transform
/// along both sides is then divided by 16.
fn waves() -> [[f32; STRIDE]; FREQUENCIES[0]] {
    std::array::from_fn(|frequency| {
        let norm = if frequency == 0 { 1.0 } else { 2.0 };
        let scale = (norm / STRIDE as f32).sqrt() / (STRIDE as f32).sqrt();
        std::array::from_fn(|x| {
            scale * (PI * (x as f32 + 0.5) * frequency as f32 / STRIDE as f32).cos()
        })
    })
}

/// Calls `encode` with each patch, as `[channel][row][column]`, and its zeroed token of `dim` values.
fn encode_patches<P: Pixel>(
    images: ArrayView4<'_, P>,
    encoder: &'static str,
    dim: usize,
    encode: impl Fn(&[[[f32; STRIDE]; STRIDE]; 3], &mut [f32]) + Send + Sync,
) -> Result<Array3<f32>, ClassicError> {
    let (rows, columns) = patch_grid(&images, encoder)?;
    Ok(encode_images(
        images,
        (rows * columns, dim),
        || (),
        |(), image: ArrayView3<'_, P>, tokens| {
            for (index, token) in tokens.chunks_exact_mut(dim).enumerate() {
                let (top, left) = (index / columns * STRIDE, index % columns * STRIDE);
                let patch = std::array::from_fn(|channel| {
                    std::array::from_fn(|y| {
                        std::array::from_fn(|x| image[[channel, top + y, left + x]].value())
                    })
                });
                encode(&patch, token);
            }
        },
    ))
}

#[cfg(test)]
mod tests {
    use ndarray::{Array4, s};

    use super::*;

    #[test]
    fn pixels_are_means_of_cells_in_row_major_order() {
        // The left half of the second patch of the second row is white in the green channel.
        let mut image = Array4::<u8>::zeros((1, 3, 32, 48));
        image.slice_mut(s![0, 1, 16..32, 16..24]).fill(255);
        let tokens = pixels(image.view()).unwrap();
        assert_eq!(tokens.dim(), (1, 6, PIXELS_DIM));
        for ((_, token, index), &value) in tokens.indexed_iter() {
            let (channel, column) = (index / 16, index % 4);
            let white = token == 4 && channel == 1 && column < 2;
            assert_eq!(value, if white { 1.0 } else { -1.0 }, "{token} {index}");
        }
    }

    #[test]
    fn a_grey_patch_has_only_its_mean() {
        let image = Array4::<f32>::from_elem((1, 3, 16, 16), 191.25);
        let tokens = dct(image.view()).unwrap();
        assert!((tokens[[0, 0, 0]] - 0.5).abs() < 1e-6);
        assert!(tokens.iter().skip(1).all(|value| value.abs() < 1e-6));
    }

    #[test]
    fn a_wave_has_one_coefficient() {
        // Three half periods from top to bottom, and two from left to right.
        let wave = |n: usize, i: usize| (PI * (i as f32 + 0.5) * n as f32 / 16.0).cos();
        let image = Array4::<f32>::from_shape_fn((1, 3, 16, 16), |(_, _, y, x)| {
            127.5 + 100.0 * wave(3, y) * wave(2, x)
        });
        let tokens = dct(image.view()).unwrap();
        for (index, value) in tokens.iter().enumerate() {
            // The norm of each wave is sqrt(8); 16 divides the orthonormal coefficient.
            let expected = if index == 3 * 8 + 2 {
                100.0 / 127.5 * 8.0 / 16.0
            } else {
                0.0
            };
            assert!((value - expected).abs() < 1e-5, "{index}: {value}");
        }
    }

    #[test]
    fn chroma_follows_luma() {
        let mut image = Array4::<u8>::zeros((1, 3, 16, 16));
        image.slice_mut(s![0, 2, .., ..]).fill(255);
        let tokens = dct(image.view()).unwrap();
        for (index, expected) in [(0, 0.114 * 2.0 - 1.0), (64, 1.0), (80, -0.081_312 * 2.0)] {
            assert!((tokens[[0, 0, index]] - expected).abs() < 1e-5, "{index}");
        }
    }

    #[test]
    fn sides_must_be_multiples_of_a_patch() {
        let image = Array4::<u8>::zeros((1, 3, 16, 20));
        let error = pixels(image.view()).unwrap_err().to_string();
        assert!(
            error.contains("pixels does not support 16x20 images"),
            "{error}"
        );
    }
}
