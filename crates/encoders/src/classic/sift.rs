//! Dense SIFT (Lowe 2004) with a dominant orientation per keypoint, as upstream's `SIFTEncoder`
//! computes it with kornia.

use std::f32::consts::{PI, SQRT_2};

use ndarray::{Array3, ArrayView3, ArrayView4};
use wide::f32x8;

use super::angle::eighths;
use super::{ClassicError, Pixel, SIFT_DIM, STRIDE, encode_images, map_rgb, patch_grid};

/// Half the side of a keypoint's frame, in pixels.
const SCALE: f32 = 16.0;

/// Side of the patch that the dominant orientation is computed from.
const ORIENTATION_PATCH: usize = 20;

/// Side of the patch that the descriptor is computed from.
const PATCH: usize = 41;

/// Number of bins of the orientation histogram.
const ANGLES: usize = 36;

/// Number of orientations, and of cells per side, of the descriptor.
const BINS: usize = 8;
const CELLS: usize = 4;

/// Largest normalised descriptor value.
const CLIP: f32 = 0.2;

/// Computes the SIFT tokens `[B, H/16 * W/16, 128]` of images `[B, 3, H, W]` whose sides are multiples of
/// 16.
///
/// Each token is the descriptor of a keypoint at (8 + 16 j, 8 + 16 i) with scale 16. The dominant
/// gradient direction is computed on a 20x20 patch. The descriptor is computed on a 41x41 patch that is
/// rotated by this direction. It has 8 orientations over 4x4 cells, laid out as (orientation, row,
/// column), and is clipped at 0.2 and L2-normalised (no RootSIFT).
///
/// # Errors
///
/// The images are not RGB, or a side is not a multiple of 16.
pub fn sift<P: Pixel>(images: ArrayView4<'_, P>) -> Result<Array3<f32>, ClassicError> {
    let (rows, columns) = patch_grid(&images, "sift")?;
    let tables = Tables::new();
    Ok(encode_images(
        images,
        (rows * columns, SIFT_DIM),
        Vec::new,
        |values, image, tokens| {
            let grey = Grey::new(image, values);
            for (centre, token) in grey.keypoints().zip(tokens.chunks_exact_mut(SIFT_DIM)) {
                let angle = tables.dominant_angle(&grey.patch(centre, 0.0));
                tables.describe(&grey.patch(centre, angle), token);
            }
        },
    ))
}

/// A patch of N x N samples. The border is repeated by one sample at both ends of each row. Unused space
/// at the end of a row allows loads of whole vectors: S >= 8 ceil(N / 8) + 8.
struct Patch<const N: usize, const S: usize>([[f32; S]; N]);

type OrientationPatch = Patch<ORIENTATION_PATCH, 32>;
type DescriptorPatch = Patch<PATCH, 56>;

impl<const N: usize, const S: usize> Patch<N, S> {
    /// Returns the rows above, at and below `y`, with the border repeated.
    fn rows(&self, y: usize) -> [&[f32; S]; 3] {
        [
            &self.0[y.saturating_sub(1)],
            &self.0[y],
            &self.0[(y + 1).min(N - 1)],
        ]
    }
}

/// A grey image in 0..=1. Its last row and column are repeated once, so that all four neighbours of any
/// position inside the image exist.
struct Grey<'a> {
    values: &'a [f32],
    height: usize,
    width: usize,
}

impl<'a> Grey<'a> {
    fn new<P: Pixel>(image: ArrayView3<'_, P>, values: &'a mut Vec<f32>) -> Self {
        let (_, height, width) = image.dim();
        map_rgb(image, values, |r, g, b| {
            let [r, g, b] = [r, g, b].map(|v| v.value() / 255.0);
            0.299 * r + 0.587 * g + 0.114 * b
        });
        let stride = width + 1;
        values.resize((height + 1) * stride, 0.0);
        for y in (0..height).rev() {
            values.copy_within(y * width..(y + 1) * width, y * stride);
            values[y * stride + width] = values[y * stride + width - 1];
        }
        values.copy_within((height - 1) * stride..height * stride, height * stride);
        Self {
            values,
            height,
            width,
        }
    }

    /// Iterates over the centres (x, y) of the cells, row-major.
    fn keypoints(&self) -> impl Iterator<Item = (f32, f32)> + use<> {
        let centre = |side: usize| (STRIDE / 2..side).step_by(STRIDE);
        let columns = centre(self.width);
        centre(self.height).flat_map(move |y| columns.clone().map(move |x| (x as f32, y as f32)))
    }

    /// Samples a patch of the frame at `(x, y)`, rotated by `angle` in radians, bilinearly and with the
    /// border repeated. kornia converts pixel positions to grid coordinates by W - 1 and back by W, which
    /// scales positions by W / (W - 1) and shifts them by half a pixel.
    fn patch<const N: usize, const S: usize>(&self, (x, y): (f32, f32), angle: f32) -> Patch<N, S> {
        let (sin, cos) = angle.sin_cos();
        let (sin, cos) = (SCALE * sin, SCALE * cos);
        let base = |k: usize| (2 * k + 1) as f32 / N as f32 - 1.0;
        let mut patch = Patch([[0.0; S]; N]);
        for start in (0..N).step_by(8) {
            let u = f32x8::from(std::array::from_fn(|lane| base(start + lane)));
            for (row, out) in patch.0.iter_mut().enumerate() {
                let v = base(row);
                let px = f32x8::splat(x) + (f32x8::splat(cos) * u + f32x8::splat(sin * v));
                let py = f32x8::splat(y) + (f32x8::splat(cos * v) - f32x8::splat(sin) * u);
                let samples = self.sample(px, py);
                out[start + 1..start + 9].copy_from_slice(samples.as_array());
            }
        }
        for row in &mut patch.0 {
            row[0] = row[1];
            row[N + 1] = row[N];
        }
        patch
    }

    /// Samples bilinearly at frame positions.
    #[inline]
    fn sample(&self, x: f32x8, y: f32x8) -> f32x8 {
        let to_pixel = |position: f32x8, side: usize| {
            let stretch = side as f32 / (side - 1) as f32;
            let pixel = position * f32x8::splat(stretch) - f32x8::splat(0.5);
            // In this order a NaN becomes 0, which is a valid index.
            pixel.max(f32x8::ZERO).min(f32x8::splat((side - 1) as f32))
        };
        let (x, y) = (to_pixel(x, self.width), to_pixel(y, self.height));
        let (column, row) = (x.fast_trunc_int(), y.fast_trunc_int());
        let (wx, wy) = (x - column.round_float(), y - row.round_float());
        let (column, row) = (column.to_array(), row.to_array());

        let stride = self.width + 1;
        let mut corners = [[0.0; 8]; 4];
        for lane in 0..8 {
            let index = row[lane] as usize * stride + column[lane] as usize;
            let upper = &self.values[index..index + 2];
            let lower = &self.values[index + stride..];
            corners[0][lane] = upper[0];
            corners[1][lane] = upper[1];
            corners[2][lane] = lower[0];
            corners[3][lane] = lower[1];
        }
        let [a, b, c, d] = corners.map(f32x8::from);
        let (vx, vy) = (f32x8::ONE - wx, f32x8::ONE - wy);
        vy * (vx * a + wx * b) + wy * (vx * c + wx * d)
    }
}

/// Loads eight samples of a padded row from index `start`.
#[inline]
fn lanes<const S: usize>(row: &[f32; S], start: usize) -> f32x8 {
    let mut lanes = [0.0; 8];
    lanes.copy_from_slice(&row[start..start + 8]);
    f32x8::from(lanes)
}

/// Windows and weights that are the same for every keypoint.
struct Tables {
    orientation_window: [[f32; 24]; ORIENTATION_PATCH],
    smoothing: [f32; 5],
    window: [[f32; 48]; PATCH],
    pooling: [Pool; PATCH],
}

/// Pooling weights of a row or column of the patch: `weight` for the cell `cell` and `next_weight` for the
/// cell after it.
#[derive(Clone, Copy, Default)]
struct Pool {
    cell: usize,
    weight: f32,
    next_weight: f32,
}

impl Tables {
    fn new() -> Self {
        Self {
            orientation_window: gaussian(ORIENTATION_PATCH as f32 / 6.0),
            smoothing: smoothing(),
            window: gaussian(PATCH as f32 / SQRT_2),
            pooling: pooling(),
        }
    }

    /// Computes the angle in radians by which kornia's `LAFOrienter` rotates the frame: the peak of a
    /// smoothed histogram of gradient directions, refined by a parabola.
    fn dominant_angle(&self, patch: &OrientationPatch) -> f32 {
        const EPS: f32 = 1e-8;
        let mut histogram = [0.0; ANGLES];
        for (y, window) in self.orientation_window.iter().enumerate() {
            let [above, row, below] = patch.rows(y);
            for start in (0..ORIENTATION_PATCH).step_by(8) {
                let column_sum = |x: usize| {
                    lanes(above, x) + f32x8::splat(2.0) * lanes(row, x) + lanes(below, x)
                };
                let row_sum = |row| {
                    lanes(row, start)
                        + f32x8::splat(2.0) * lanes(row, start + 1)
                        + lanes(row, start + 2)
                };
                let gx = (column_sum(start + 2) - column_sum(start)) * f32x8::splat(1.0 / 8.0);
                let gy = (row_sum(below) - row_sum(above)) * f32x8::splat(1.0 / 8.0);
                let magnitude = (gx * gx + gy * gy + f32x8::splat(EPS)).sqrt();
                let magnitude = magnitude * lanes(window, start);
                // 36 (angle + 3 pi) / (2 pi), up to multiples of 36.
                let position = eighths(gy, gx + f32x8::splat(EPS))
                    * f32x8::splat(ANGLES as f32 / 8.0)
                    + f32x8::splat(18.0);
                let Votes { bin, lower, upper } = Votes::new(position, magnitude);
                for lane in 0..8.min(ORIENTATION_PATCH - start) {
                    let bin = bin[lane] as usize;
                    histogram[bin % ANGLES] += lower[lane];
                    histogram[(bin + 1) % ANGLES] += upper[lane];
                }
            }
        }

        let smoothed = |bin: usize| {
            let taps =
                (0..5).map(|k| self.smoothing[k] * histogram[(bin + ANGLES + k - 2) % ANGLES]);
            taps.sum::<f32>() / (ORIENTATION_PATCH * ORIENTATION_PATCH) as f32
        };
        let smooth: [f32; ANGLES] = std::array::from_fn(smoothed);
        let mut peak = 0;
        for bin in 1..ANGLES {
            if smooth[bin] > smooth[peak] {
                peak = bin;
            }
        }
        let (left, right) = (
            smooth[(peak + ANGLES - 1) % ANGLES],
            smooth[(peak + 1) % ANGLES],
        );
        let curvature = left + right - 2.0 * smooth[peak];
        let refine = if curvature == 0.0 {
            0.0
        } else {
            0.5 * (left - right) / curvature
        };
        -(2.0 * PI * (peak as f32 + refine) / ANGLES as f32 - PI)
    }

    /// Computes the descriptor of a patch, laid out as (orientation, row, column).
    fn describe(&self, patch: &DescriptorPatch, token: &mut [f32]) {
        const EPS: f32 = 1e-10;
        // Pooling is separable: each row of the patch is pooled along x first. An additional cell
        // receives the zero `next_weight` of the last cell.
        let mut cells = [[f32x8::ZERO; CELLS + 1]; CELLS + 1];
        for (y, window) in self.window.iter().enumerate() {
            let [above, row, below] = patch.rows(y);
            let mut pooled = [[0.0; BINS]; CELLS + 1];
            for start in (0..PATCH).step_by(8) {
                let half = f32x8::splat(0.5);
                let gx = half * (lanes(row, start + 2) - lanes(row, start));
                let gy = half * (lanes(below, start + 1) - lanes(above, start + 1));
                let magnitude = (gx * gx + gy * gy + f32x8::splat(EPS)).sqrt();
                let magnitude = magnitude * lanes(window, start);
                let position = eighths(gy, gx + f32x8::splat(EPS));
                let Votes { bin, lower, upper } = Votes::new(position, magnitude);
                for (lane, pool) in self.pooling[start..].iter().take(8).enumerate() {
                    let (bin, next) = (bin[lane] as usize % BINS, (bin[lane] + 1) as usize % BINS);
                    let (lower, upper) = (lower[lane], upper[lane]);
                    pooled[pool.cell][bin] += pool.weight * lower;
                    pooled[pool.cell][next] += pool.weight * upper;
                    pooled[pool.cell + 1][bin] += pool.next_weight * lower;
                    pooled[pool.cell + 1][next] += pool.next_weight * upper;
                }
            }
            let Pool {
                cell,
                weight,
                next_weight,
            } = self.pooling[y];
            for (row, weight) in [(cell, weight), (cell + 1, next_weight)] {
                for (sum, v) in cells[row].iter_mut().zip(pooled) {
                    *sum += f32x8::splat(weight) * f32x8::from(v);
                }
            }
        }
        let cells = cells.map(|row| row.map(f32x8::to_array));
        for (i, out) in token.iter_mut().enumerate() {
            let (bin, row, col) = (i / (CELLS * CELLS), i / CELLS % CELLS, i % CELLS);
            *out = cells[row][col][bin];
        }
        normalise(token);
        token.iter_mut().for_each(|v| *v = v.clamp(0.0, CLIP));
        normalise(token);
        normalise(token);
    }
}

/// Votes of eight gradients, each split between its two nearest orientation bins.
struct Votes {
    bin: [i32; 8],
    lower: [f32; 8],
    upper: [f32; 8],
}

impl Votes {
    #[inline]
    fn new(position: f32x8, magnitude: f32x8) -> Self {
        let bin = position.fast_trunc_int();
        let upper = (position - bin.round_float()) * magnitude;
        Self {
            bin: bin.to_array(),
            lower: (magnitude - upper).to_array(),
            upper: upper.to_array(),
        }
    }
}

/// A Gaussian window of N x N samples with sum 1 and rows padded with zeros to length S.
fn gaussian<const N: usize, const S: usize>(sigma: f32) -> [[f32; S]; N] {
    let sigma = f64::from(sigma);
    let centre = (N - 1) as f64 / 2.0;
    let profile: [f64; N] = std::array::from_fn(|k| {
        let x = k as f64 - centre;
        (-x * x / (2.0 * sigma * sigma)).exp()
    });
    let sum: f64 = profile.iter().sum();
    let weight = |y: usize, x: usize| match profile.get(x) {
        Some(value) => (profile[y] * value / (sum * sum)) as f32,
        None => 0.0,
    };
    std::array::from_fn(|y| std::array::from_fn(|x| weight(y, x)))
}

/// Smoothing weights of the orientation histogram: the discrete Gaussian exp(-t) I_n(t) with variance
/// t = 1.6^2 on five taps, normalised to sum 1.
fn smoothing() -> [f32; 5] {
    const HALF_VARIANCE: f64 = 1.6 * 1.6 / 2.0;
    // The power series of the modified Bessel function of order n; the normalisation cancels exp(-t).
    let bessel = |n: i32| {
        let mut term = (1..=n).fold(1.0, |term, k| term * HALF_VARIANCE / f64::from(k));
        let mut sum = term;
        for m in 1..30 {
            term *= HALF_VARIANCE * HALF_VARIANCE / f64::from(m * (m + n));
            sum += term;
        }
        sum
    };
    let taps = [2, 1, 0, 1, 2].map(bessel);
    let sum: f64 = taps.iter().sum();
    taps.map(|tap| (tap / sum) as f32)
}

/// Triangular pooling windows of 16 samples with stride 10; the first one starts four samples before
/// the patch.
fn pooling() -> [Pool; PATCH] {
    const SUPPORT: usize = 16;
    const STRIDE: usize = 10;
    const PAD: usize = 4;
    let triangle = |k: usize| {
        if k < SUPPORT {
            (8.0 - (k as f32 - 7.5).abs()) / 8.0
        } else {
            0.0
        }
    };
    std::array::from_fn(|x| {
        // The first cell whose window contains x, and the next cell.
        let cell = (x + PAD).saturating_sub(SUPPORT - STRIDE) / STRIDE;
        let cell = cell.min(CELLS - 1);
        let offset = x + PAD - STRIDE * cell;
        let next_weight = if offset >= STRIDE && cell + 1 < CELLS {
            triangle(offset - STRIDE)
        } else {
            0.0
        };
        Pool {
            cell,
            weight: triangle(offset),
            next_weight,
        }
    })
}

fn normalise(values: &mut [f32]) {
    let norm = values.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
    values.iter_mut().for_each(|v| *v /= norm);
}

#[cfg(test)]
mod tests;
