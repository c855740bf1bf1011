//! Resizes 8-bit images with results that are bit-identical to Pillow 11.3.
//!
//! The images, centre crops and masks of the published results were resized by Pillow, which uses
//! fixed-point arithmetic and rounds to bytes between its two passes. Other implementations give
//! different bytes (by one level in a tenth of the pixels, and by up to 17 if an odd side is halved).
//! This module therefore follows `src/libImaging/Resample.c` exactly:
//!
//! - The horizontal pass always comes first (later versions choose the order by the shape). A pass
//!   that does not change the size of its side is omitted.
//! - With `scale = in / out`, output `i` is centred at `(i + 0.5) scale`. The filter is widened by
//!   `max(scale, 1)` and covers the inputs from `int(centre - support + 0.5)` to
//!   `int(centre + support + 0.5)`, exclusive, that lie within the image.
//! - Weights are normalised in float64 and rounded to 22 fractional bits. A sum starts at one half,
//!   is shifted down and clamped to 0..255.
//!
//! Pillow uses the filter [`Filter::Nearest`] for palette and 1-bit images.
//!
//! Pillow multiplies RGB by alpha before it resizes RGBA images. This module does not: it resizes
//! each channel independently.

use std::borrow::Cow;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use crate::error::ImageError;
use crate::sample::check_buffer;

/// The filter that computes an output pixel from input pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The input pixel under the centre of the output pixel.
    Nearest,
    /// The mean over the area of the output pixel.
    Box,
    /// Keys' cubic filter with a = -0.5, widened when the image is reduced.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.0,
            Filter::Box => 0.5,
            Filter::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        match self {
            Filter::Nearest => 0.0,
            Filter::Box if x > -0.5 && x <= 0.5 => 1.0,
            Filter::Box => 0.0,
            Filter::Bicubic => match x.abs() {
                x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                _ => 0.0,
            },
        }
    }
}

/// Resizes an image `[height, width, channels]` to `[out_height, out_width, channels]`.
///
/// ```
/// use data::pillow::{Filter, resize};
///
/// let grey = [0, 255, 0, 255];
/// assert_eq!(resize(&grey, 4, 1, 1, 2, 1, Filter::Box)?, [128, 128]);
/// # Ok::<(), data::ImageError>(())
/// ```
///
/// # Errors
///
/// [`ImageError::Size`] if a side is zero, [`ImageError::Buffer`] if the size of `bytes` does not match
/// the shape, [`ImageError::Channels`] unless there are 1 to 4 channels.
pub fn resize(
    bytes: &[u8],
    width: u32,
    height: u32,
    channels: usize,
    out_width: u32,
    out_height: u32,
    filter: Filter,
) -> Result<Vec<u8>, ImageError> {
    let out = Output {
        width: out_width,
        height: out_height,
        columns: 0..out_width,
        rows: 0..out_height,
    };
    resize_window(bytes, width, height, channels, &out, filter).map(Cow::into_owned)
}

/// A window of a resized image. Only its pixels are computed; they equal those of the whole resized image.
pub(crate) struct Output {
    /// Width of the whole resized image.
    pub width: u32,
    /// Height of the whole resized image.
    pub height: u32,
    /// Columns of the window.
    pub columns: Range<u32>,
    /// Rows of the window.
    pub rows: Range<u32>,
}

/// Resizes an image and returns the window, `[rows, columns, channels]`.
pub(crate) fn resize_window<'a>(
    bytes: &'a [u8],
    width: u32,
    height: u32,
    channels: usize,
    out: &Output,
    filter: Filter,
) -> Result<Cow<'a, [u8]>, ImageError> {
    if !(1..=4).contains(&channels) {
        return Err(ImageError::Channels(channels));
    }
    check_buffer("image", width, height, channels, bytes.len())?;
    let window = (out.columns.len(), out.rows.len());
    let fits = out.columns.end <= out.width && out.rows.end <= out.height;
    let addressable = window
        .0
        .checked_mul(window.1)
        .and_then(|n| n.checked_mul(channels));
    if !fits || addressable.is_none_or(|n| n == 0 || n > isize::MAX as usize) {
        return Err(ImageError::Size {
            width: out.width,
            height: out.height,
        });
    }
    Ok(match channels {
        1 => passes::<1>(bytes, width as usize, height as usize, out, filter),
        2 => passes::<2>(bytes, width as usize, height as usize, out, filter),
        3 => passes::<3>(bytes, width as usize, height as usize, out, filter),
        _ => passes::<4>(bytes, width as usize, height as usize, out, filter),
    })
}

fn passes<'a, const C: usize>(
    bytes: &'a [u8],
    width: usize,
    height: usize,
    out: &Output,
    filter: Filter,
) -> Cow<'a, [u8]> {
    let columns = out.columns.start as usize..out.columns.end as usize;
    let rows = out.rows.start as usize..out.rows.end as usize;
    if filter == Filter::Nearest {
        let columns = nearest(width, out.width as usize, columns);
        let rows = nearest(height, out.height as usize, rows);
        let (pixels, _) = bytes.as_chunks::<C>();
        let picked = rows
            .iter()
            .flat_map(|&y| columns.iter().flat_map(move |&x| pixels[y * width + x]))
            .collect();
        return Cow::Owned(picked);
    }

    let vertical = (out.height as usize != height)
        .then(|| Taps::new(height, out.height as usize, rows.clone(), filter));
    // The rows that the vertical pass reads. Only these need a horizontal pass.
    let used = match &vertical {
        Some(taps) => taps.inputs(),
        None => rows,
    };
    let source = &bytes[used.start * width * C..used.end * width * C];

    let narrowed = if out.width as usize != width {
        let taps = Taps::new(width, out.width as usize, columns.clone(), filter);
        let taps = &taps;
        Cow::Owned(Arch::new().dispatch(HorizontalPass::<C> {
            source,
            width,
            taps,
        }))
    } else if columns == (0..width) {
        Cow::Borrowed(source)
    } else {
        let cut = |row: &'a [u8]| &row[columns.start * C..columns.end * C];
        Cow::Owned(
            source
                .chunks_exact(width * C)
                .flat_map(cut)
                .copied()
                .collect(),
        )
    };
    match vertical {
        Some(taps) => Cow::Owned(Arch::new().dispatch(VerticalPass {
            source: &narrowed,
            row_len: columns.len() * C,
            first_row: used.start,
            taps: &taps,
        })),
        None => narrowed,
    }
}

const FRACTION_BITS: u32 = 22;
const ONE_HALF: i32 = 1 << (FRACTION_BITS - 1);

/// The inputs and weights of each output along one side.
struct Taps {
    /// The first input of each output, and the number of its inputs.
    spans: Vec<(usize, usize)>,
    /// Fixed-point weights, `stride` per output.
    weights: Vec<i32>,
    stride: usize,
}

impl Taps {
    fn new(size: usize, out_size: usize, window: Range<usize>, filter: Filter) -> Self {
        let scale = size as f64 / out_size as f64;
        let widened = scale.max(1.0);
        let support = filter.support() * widened;
        let stride = support.ceil() as usize * 2 + 1;
        let mut taps = Taps {
            spans: Vec::with_capacity(window.len()),
            weights: vec![0; window.len() * stride],
            stride,
        };
        let mut exact = Vec::with_capacity(stride);
        for (output, fixed) in window.zip(taps.weights.chunks_exact_mut(stride)) {
            let centre = (output as f64 + 0.5) * scale;
            // A cast to usize truncates, and maps negative numbers to zero.
            let start = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(size);
            exact.clear();
            exact.extend(
                (start..end).map(|i| filter.weight((i as f64 - centre + 0.5) * (1.0 / widened))),
            );
            let sum: f64 = exact.iter().sum();
            for (fixed, &weight) in fixed.iter_mut().zip(&exact) {
                let weight = if sum != 0.0 { weight / sum } else { weight };
                let scaled = weight * f64::from(1 << FRACTION_BITS);
                *fixed = (scaled + if weight < 0.0 { -0.5 } else { 0.5 }) as i32;
            }
            taps.spans.push((start, end - start));
        }
        taps
    }

    /// The range of inputs that the outputs read.
    fn inputs(&self) -> Range<usize> {
        let start = self.spans.iter().map(|&(start, _)| start).min();
        let end = self.spans.iter().map(|&(start, count)| start + count).max();
        start.unwrap_or(0)..end.unwrap_or(0)
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let weights = self.weights.chunks_exact(self.stride);
        self.spans
            .iter()
            .zip(weights)
            .map(|(&(start, count), weights)| (start, &weights[..count]))
    }
}

/// Number of bytes that a pass sums at once: in the vertical pass, consecutive bytes of a row; in the
/// horizontal pass, the channels of a pixel in as many rows as fit.
const LANES: usize = 32;

/// The horizontal pass over rows of `width` pixels.
struct HorizontalPass<'a, const C: usize> {
    source: &'a [u8],
    width: usize,
    taps: &'a Taps,
}

impl<const C: usize> WithSimd for HorizontalPass<'_, C> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<u8> {
        let row_len = self.width * C;
        let out_len = self.taps.spans.len() * C;
        let rows_at_once = LANES / C;
        let used = self.taps.inputs();
        let mut out = vec![0; self.source.len() / row_len * out_len];
        let mut columns = vec![[0; LANES]; used.len()];
        let sources = self.source.chunks(rows_at_once * row_len);
        for (source, out) in sources.zip(out.chunks_mut(rows_at_once * out_len)) {
            for (row, bytes) in source.chunks_exact(row_len).enumerate() {
                let (pixels, _) = bytes.as_chunks::<C>();
                for (column, pixel) in columns.iter_mut().zip(&pixels[used.clone()]) {
                    column[row * C..][..C].copy_from_slice(pixel);
                }
            }
            for (x, (start, weights)) in self.taps.iter().enumerate() {
                let bytes = weighted(columns[start - used.start..].iter(), weights);
                for (row, out) in out.chunks_exact_mut(out_len).enumerate() {
                    out[x * C..][..C].copy_from_slice(&bytes[row * C..][..C]);
                }
            }
        }
        out
    }
}

/// The vertical pass over rows of `row_len` bytes. The first row of `source` is input row `first_row`.
struct VerticalPass<'a> {
    source: &'a [u8],
    row_len: usize,
    first_row: usize,
    taps: &'a Taps,
}

impl WithSimd for VerticalPass<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<u8> {
        let row_len = self.row_len;
        let mut out = vec![0; self.taps.spans.len() * row_len];
        for (out, (start, weights)) in out.chunks_exact_mut(row_len).zip(self.taps.iter()) {
            let source = &self.source[(start - self.first_row) * row_len..];
            let (wide, rest) = out.as_chunks_mut::<LANES>();
            let rest_start = wide.len() * LANES;
            for (index, out) in wide.iter_mut().enumerate() {
                *out = weighted(column_of(source, row_len, index * LANES), weights);
            }
            for (index, out) in rest.iter_mut().enumerate() {
                [*out] = weighted(column_of(source, row_len, rest_start + index), weights);
            }
        }
        out
    }
}

/// Iterates over the `N` bytes of each row that start at `column`.
#[inline(always)]
fn column_of<const N: usize>(
    source: &[u8],
    row_len: usize,
    column: usize,
) -> impl Iterator<Item = &[u8; N]> {
    let rows = source[column..].chunks(row_len);
    rows.filter_map(|row| row.first_chunk::<N>())
}

/// Computes the weighted sums of the inputs, byte by byte.
///
/// The sums cannot overflow, because the magnitudes of the weights add up to less than 1.3. Wrapping operations are
/// used because overflow checks would prevent the vectorisation of the loop.
#[inline(always)]
fn weighted<'a, const N: usize>(
    inputs: impl Iterator<Item = &'a [u8; N]>,
    weights: &[i32],
) -> [u8; N] {
    let mut sums = [ONE_HALF; N];
    for (input, &weight) in inputs.zip(weights) {
        for (sum, &value) in sums.iter_mut().zip(input) {
            *sum = sum.wrapping_add(i32::from(value).wrapping_mul(weight));
        }
    }
    let mut bytes = [0; N];
    for (byte, sum) in bytes.iter_mut().zip(&sums) {
        *byte = (sum >> FRACTION_BITS).clamp(0, 255) as u8;
    }
    bytes
}

/// The input index of each output in the window, computed as in Pillow by a running sum in float64.
fn nearest(size: usize, out_size: usize, window: Range<usize>) -> Vec<usize> {
    let scale = size as f64 / out_size as f64;
    let positions = std::iter::successors(Some(scale * 0.5), |position| Some(position + scale));
    let indices = positions.map(|position| (position as usize).min(size - 1));
    indices.skip(window.start).take(window.len()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn invalid_sizes_are_refused() {
        let size = |width, height| Err(ImageError::Size { width, height });
        assert_eq!(resize(&[], 0, 1, 1, 2, 2, Filter::Box), size(0, 1));
        assert_eq!(resize(&[1], 1, 1, 1, 0, 2, Filter::Box), size(0, 2));
        assert_eq!(
            resize(&[1; 5], 1, 1, 5, 1, 1, Filter::Box),
            Err(ImageError::Channels(5))
        );
        assert!(matches!(
            resize(&[1; 5], 2, 2, 1, 1, 1, Filter::Box),
            Err(ImageError::Buffer {
                found: 5,
                expected: 4,
                ..
            })
        ));
    }

    fn filters() -> impl Strategy<Value = Filter> {
        prop_oneof![
            Just(Filter::Nearest),
            Just(Filter::Box),
            Just(Filter::Bicubic)
        ]
    }

    proptest! {
        #[test]
        fn a_window_has_the_pixels_of_the_whole_image(
            width in 1_u32..40, height in 1_u32..40, out_width in 1_u32..40, out_height in 1_u32..40,
            left in 0.0..1.0_f64, top in 0.0..1.0_f64, filter in filters(), seed: u64,
        ) {
            let mut state = seed;
            let bytes: Vec<u8> = (0..width * height * 3).map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            }).collect();
            let whole = resize(&bytes, width, height, 3, out_width, out_height, filter).unwrap();
            prop_assert_eq!(whole.len(), (out_width * out_height * 3) as usize);

            let columns = (left * f64::from(out_width)) as u32..out_width;
            let rows = (top * f64::from(out_height)) as u32..out_height;
            let cut: Vec<u8> = rows.clone().flat_map(|y| columns.clone().flat_map(move |x| (0..3).map(
                move |c| ((y * out_width + x) * 3 + c) as usize))).map(|i| whole[i]).collect();
            let out = Output { width: out_width, height: out_height, columns, rows };
            let window = resize_window(&bytes, width, height, 3, &out, filter).unwrap();
            prop_assert_eq!(window.as_ref(), cut);
        }

        #[test]
        fn a_constant_image_stays_constant(
            width in 1_u32..70, height in 1_u32..70, out_width in 1_u32..70, out_height in 1_u32..70,
            value: u8, filter in filters(),
        ) {
            let bytes = vec![value; (width * height) as usize];
            let out = resize(&bytes, width, height, 1, out_width, out_height, filter).unwrap();
            prop_assert!(out.iter().all(|&byte| byte == value));
        }
    }
}
