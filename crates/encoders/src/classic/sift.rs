//! Dense SIFT (Lowe 2004) with a dominant orientation per keypoint, as upstream's `SIFTEncoder`
//! computes it with kornia.

use std::f32::consts::{PI, SQRT_2};

use ndarray::{Array3, ArrayView3, ArrayView4};

use super::angle::eighths;
use super::{ClassicError, Pixel, SIFT_DIM, SIFT_STRIDE, encode_images, map_rgb, sift_size};

/// Half the side of a keypoint's frame in pixels.
const SCALE: f32 = 16.0;

/// Side of the patch that the orientation is read from.
const ORIENTATION_PATCH: usize = 20;

/// Side of the patch that is described.
const PATCH: usize = 41;

/// Bins of the orientation histogram.
const ANGLES: usize = 36;

/// Orientations and cells a side of the descriptor.
const BINS: usize = 8;
const CELLS: usize = 4;

/// Ceiling of a normalised descriptor value.
const CLIP: f32 = 0.2;

/// SIFT tokens of images `[B, 3, H, W]` whose sides are multiples of 16: `[B, H/16 * W/16, 128]`.
///
/// One keypoint at (8 + 16 j, 8 + 16 i) of scale 16: its dominant gradient direction is found on a
/// 20x20 patch, and a 41x41 patch turned by it is described by 8 orientations over 4x4 cells, laid
/// out as (orientation, row, column), clipped at 0.2 and L2-normalised (no RootSIFT).
///
/// # Errors
///
/// Not RGB, or a side that is not a multiple of 16.
pub fn sift<P: Pixel>(images: ArrayView4<'_, P>) -> Result<Array3<f32>, ClassicError> {
    let (height, width) = sift_size(&images, "sift")?;
    let tables = Tables::new();
    let tokens = (height / SIFT_STRIDE) * (width / SIFT_STRIDE);
    Ok(encode_images(
        images,
        (tokens, SIFT_DIM),
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

type Patch<const N: usize> = [[f32; N]; N];

/// A grey image in 0..=1.
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
        Self {
            values,
            height,
            width,
        }
    }

    /// Centres (x, y) of the cells, row-major.
    fn keypoints(&self) -> impl Iterator<Item = (f32, f32)> + use<> {
        let centre = |side: usize| (SIFT_STRIDE / 2..side).step_by(SIFT_STRIDE);
        let columns = centre(self.width);
        centre(self.height).flat_map(move |y| columns.clone().map(move |x| (x as f32, y as f32)))
    }

    /// An N x N patch of the frame at `centre` turned by `angle`, sampled bilinearly with the
    /// border repeated. kornia turns pixel positions into grid coordinates over W - 1 and back over
    /// W, which stretches positions by W / (W - 1) and shifts them by half a pixel.
    fn patch<const N: usize>(&self, (x, y): (f32, f32), angle: f32) -> Patch<N> {
        let (sin, cos) = angle.sin_cos();
        let (sin, cos) = (SCALE * sin, SCALE * cos);
        let stretch = |side: usize| side as f32 / (side - 1) as f32;
        let (stretch_x, stretch_y) = (stretch(self.width), stretch(self.height));
        let (last_x, last_y) = ((self.width - 1) as f32, (self.height - 1) as f32);
        let base = |k: usize| (2 * k + 1) as f32 / N as f32 - 1.0;

        let mut patch = [[0.0; N]; N];
        for (row, out) in patch.iter_mut().enumerate() {
            let v = base(row);
            let mut position = [(0.0, 0.0); N];
            for (col, position) in position.iter_mut().enumerate() {
                let u = base(col);
                let px = (x + (cos * u + sin * v)) * stretch_x - 0.5;
                let py = (y + (cos * v - sin * u)) * stretch_y - 0.5;
                *position = (px.clamp(0.0, last_x), py.clamp(0.0, last_y));
            }
            for (out, (px, py)) in out.iter_mut().zip(position) {
                *out = self.sample(px, py);
            }
        }
        patch
    }

    /// Bilinear sample at a position inside the image.
    fn sample(&self, px: f32, py: f32) -> f32 {
        let (x, y) = (px as usize, py as usize);
        let (wx, wy) = (px - x as f32, py - y as f32);
        let right = usize::from(x + 1 < self.width);
        let at = y * self.width + x;
        let below = if y + 1 < self.height {
            at + self.width
        } else {
            at
        };
        let v = self.values;
        (1.0 - wy) * ((1.0 - wx) * v[at] + wx * v[at + right])
            + wy * ((1.0 - wx) * v[below] + wx * v[below + right])
    }
}

/// Windows and weights that every keypoint shares.
struct Tables {
    orientation_window: Patch<ORIENTATION_PATCH>,
    smoothing: [f32; 5],
    window: Patch<PATCH>,
    pooling: [Pool; PATCH],
}

/// The cells that a row or column of the patch is pooled into: `cell` with `here` and the next one
/// with `next`.
#[derive(Clone, Copy, Default)]
struct Pool {
    cell: usize,
    here: f32,
    next: f32,
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

    /// Angle in radians by which kornia's `LAFOrienter` turns the frame: the peak of a smoothed
    /// histogram of gradient directions, refined by a parabola.
    fn dominant_angle(&self, patch: &Patch<ORIENTATION_PATCH>) -> f32 {
        const EPS: f32 = 1e-8;
        let mut histogram = [0.0; ANGLES];
        for (y, window) in self.orientation_window.iter().enumerate() {
            let (above, row, below) = neighbours(patch, y);
            let mut votes = [(0.0, 0.0); ORIENTATION_PATCH];
            for (x, (vote, weight)) in votes.iter_mut().zip(window).enumerate() {
                let (left, right) = (x.saturating_sub(1), (x + 1).min(ORIENTATION_PATCH - 1));
                let sobel = |a: f32, b: f32, c: f32| (a + 2.0 * b + c) / 8.0;
                let gx = sobel(above[right], row[right], below[right])
                    - sobel(above[left], row[left], below[left]);
                let gy = sobel(below[left], below[x], below[right])
                    - sobel(above[left], above[x], above[right]);
                let magnitude = (gx * gx + gy * gy + EPS).sqrt() * weight;
                // 36 (angle + 3 pi) / (2 pi), of which a whole turn drops out.
                let position = eighths(gy, gx + EPS) * (ANGLES as f32 / 8.0) + 18.0;
                *vote = (position, magnitude);
            }
            for (position, magnitude) in votes {
                let bin = position as usize;
                let part = position - bin as f32;
                histogram[bin % ANGLES] += (1.0 - part) * magnitude;
                histogram[(bin + 1) % ANGLES] += part * magnitude;
            }
        }

        let at = |bin: usize| {
            let taps =
                (0..5).map(|k| self.smoothing[k] * histogram[(bin + ANGLES + k - 2) % ANGLES]);
            taps.sum::<f32>() / (ORIENTATION_PATCH * ORIENTATION_PATCH) as f32
        };
        let smooth: [f32; ANGLES] = std::array::from_fn(at);
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

    /// The descriptor of a patch, `(orientation, row, column)`.
    fn describe(&self, patch: &Patch<PATCH>, token: &mut [f32]) {
        const EPS: f32 = 1e-10;
        // Pooling is separable: each row of the patch is pooled along x first. One cell more than
        // there are takes the weight 0 of the last ones' neighbour.
        let mut cells = [[[0.0; BINS]; CELLS + 1]; CELLS + 1];
        for (y, window) in self.window.iter().enumerate() {
            let (above, row, below) = neighbours(patch, y);
            let mut across = [0.0; PATCH];
            for (x, gx) in across.iter_mut().enumerate() {
                *gx = 0.5 * (row[(x + 1).min(PATCH - 1)] - row[x.saturating_sub(1)]);
            }
            let mut votes = [(0.0, 0.0); PATCH];
            for (x, vote) in votes.iter_mut().enumerate() {
                let (gx, gy) = (across[x], 0.5 * (below[x] - above[x]));
                let magnitude = (gx * gx + gy * gy + EPS).sqrt() * window[x];
                *vote = (eighths(gy, gx + EPS), magnitude);
            }
            let mut pooled = [[0.0; BINS]; CELLS + 1];
            for ((position, magnitude), pool) in votes.into_iter().zip(&self.pooling) {
                let bin = position as usize;
                let upper = (position - bin as f32) * magnitude;
                let lower = magnitude - upper;
                let (bin, next) = (bin % BINS, (bin + 1) % BINS);
                pooled[pool.cell][bin] += pool.here * lower;
                pooled[pool.cell][next] += pool.here * upper;
                pooled[pool.cell + 1][bin] += pool.next * lower;
                pooled[pool.cell + 1][next] += pool.next * upper;
            }
            let Pool { cell, here, next } = self.pooling[y];
            for (row, weight) in [(cell, here), (cell + 1, next)] {
                for (sum, v) in cells[row]
                    .as_flattened_mut()
                    .iter_mut()
                    .zip(pooled.as_flattened())
                {
                    *sum += weight * v;
                }
            }
        }
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

/// The rows above, at and below `y`, the border repeated.
fn neighbours<const N: usize>(patch: &Patch<N>, y: usize) -> (&[f32; N], &[f32; N], &[f32; N]) {
    (
        &patch[y.saturating_sub(1)],
        &patch[y],
        &patch[(y + 1).min(N - 1)],
    )
}

/// A Gaussian window of sum 1.
fn gaussian<const N: usize>(sigma: f32) -> Patch<N> {
    let sigma = f64::from(sigma);
    let centre = (N - 1) as f64 / 2.0;
    let profile: [f64; N] = std::array::from_fn(|k| {
        let x = k as f64 - centre;
        (-x * x / (2.0 * sigma * sigma)).exp()
    });
    let sum: f64 = profile.iter().sum();
    std::array::from_fn(|y| std::array::from_fn(|x| (profile[y] * profile[x] / (sum * sum)) as f32))
}

/// The discrete Gaussian exp(-t) I_n(t) of variance t = 1.6^2 on five taps, of sum 1, with which
/// the orientation histogram is smoothed.
fn smoothing() -> [f32; 5] {
    const HALF_VARIANCE: f64 = 1.6 * 1.6 / 2.0;
    // The modified Bessel function of order n by its power series; exp(-t) cancels in the sum.
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

/// Triangles of 16 samples, one every 10, the first four samples before the patch.
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
        // The first cell that reaches x, and its neighbour.
        let cell = (x + PAD).saturating_sub(SUPPORT - STRIDE) / STRIDE;
        let cell = cell.min(CELLS - 1);
        let offset = x + PAD - STRIDE * cell;
        let next = if offset >= STRIDE && cell + 1 < CELLS {
            triangle(offset - STRIDE)
        } else {
            0.0
        };
        Pool {
            cell,
            here: triangle(offset),
            next,
        }
    })
}

fn normalise(values: &mut [f32]) {
    let norm = values.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
    values.iter_mut().for_each(|v| *v /= norm);
}

#[cfg(test)]
mod tests;
