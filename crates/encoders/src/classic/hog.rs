//! Dense histograms of oriented gradients (Dalal and Triggs 2005), as upstream's
//! `HOGVisionEncoder` computes them with scikit-image.

use std::fmt;
use std::str::FromStr;

use ndarray::{Array3, ArrayView3, ArrayView4};
use serde::{Deserialize, Serialize};

use super::{ClassicError, Pixel, encode_images, image_size, map_rgb};

/// Added under both square roots of the L2-Hys normalisation; avoids a division by zero.
const BLOCK_EPS: f64 = 1e-5;

/// Largest normalised block value in L2-Hys.
const BLOCK_CLIP: f64 = 0.2;

/// Configuration of HOG. Its text form is upstream's, `g16_d128_ppc2_cb4`; omitted parts keep their
/// defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HogConfig {
    /// Side of the token grid, `g`. T = grid * grid.
    pub grid: usize,
    /// Width of a token, `d`: orientations * cells_per_block^2.
    pub dim: usize,
    /// Side of a cell in pixels, `ppc`.
    pub pixels_per_cell: usize,
    /// Side of a block in cells, `cb`.
    pub cells_per_block: usize,
}

impl Default for HogConfig {
    fn default() -> Self {
        Self {
            grid: 16,
            dim: 128,
            pixels_per_cell: 2,
            cells_per_block: 4,
        }
    }
}

impl HogConfig {
    /// Orientation bins over 180 degrees.
    pub fn orientations(&self) -> usize {
        self.dim / self.cells_per_block.pow(2).max(1)
    }

    /// Checks that the configuration is usable for some image.
    ///
    /// # Errors
    /// A value is zero or too large, or the width is not a multiple of the cells of a block.
    pub fn validate(&self) -> Result<(), ClassicError> {
        let refuse = |reason: String| {
            Err(ClassicError::HogConfig {
                text: self.to_string(),
                reason,
            })
        };
        let bounds = [
            ("g (grid)", self.grid, 1024),
            ("d (width)", self.dim, 65_536),
            ("ppc (pixels per cell)", self.pixels_per_cell, 1024),
            ("cb (cells per block)", self.cells_per_block, 64),
        ];
        for (name, value, max) in bounds {
            if value == 0 || value > max {
                return refuse(format!("{name} must be 1 to {max}, not {value}"));
            }
        }
        let cells = self.cells_per_block.pow(2);
        if !self.dim.is_multiple_of(cells) {
            return refuse(format!(
                "width {} must be a multiple of the {cells} cells of a block",
                self.dim
            ));
        }
        Ok(())
    }
}

impl fmt::Display for HogConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            grid,
            dim,
            pixels_per_cell,
            cells_per_block,
        } = self;
        write!(f, "g{grid}_d{dim}_ppc{pixels_per_cell}_cb{cells_per_block}")
    }
}

impl FromStr for HogConfig {
    type Err = ClassicError;

    fn from_str(text: &str) -> Result<Self, ClassicError> {
        let mut config = Self::default();
        for part in text.split('_') {
            let digits = part
                .find(|c: char| c.is_ascii_digit())
                .unwrap_or(part.len());
            let (key, number) = part.split_at(digits);
            let refuse = |reason: &str| ClassicError::HogConfig {
                text: text.into(),
                reason: format!("`{part}` {reason}; an example is `g16_d128_ppc2_cb4`"),
            };
            let field = match key {
                "g" => &mut config.grid,
                "d" => &mut config.dim,
                "ppc" => &mut config.pixels_per_cell,
                "cb" => &mut config.cells_per_block,
                _ => return Err(refuse("is not one of g, d, ppc, cb")),
            };
            *field = number
                .parse()
                .map_err(|_| refuse("does not contain an integer"))?;
        }
        config.validate()?;
        Ok(config)
    }
}

/// Computes the HOG tokens `[B, grid * grid, dim]` of images `[B, 3, H, W]`.
///
/// The steps are: conversion to grey (ITU-R 709 weights), central differences, hard votes into
/// orientation bins over 180 degrees, an L2-Hys block at every cell, L2 normalisation of each block, and
/// a bilinear resize of the block map to the grid. The tokens are not normalised after the resize.
/// Upstream computes all (H / ppc - cb + 1)^2 blocks. The resize reads four blocks per token, so this
/// function computes only those.
///
/// # Errors
///
/// The images are not RGB or are smaller than one block, or [`HogConfig::validate`] refuses the
/// configuration.
pub fn hog<P: Pixel>(
    images: ArrayView4<'_, P>,
    config: &HogConfig,
) -> Result<Array3<f32>, ClassicError> {
    let (height, width) = image_size(&images)?;
    let plan = Plan::new(config, height, width)?;
    let shape = (config.grid * config.grid, config.dim);
    Ok(encode_images(
        images,
        shape,
        Scratch::default,
        |scratch, image, tokens| {
            plan.encode(scratch, image, tokens);
        },
    ))
}

/// Values that depend only on the configuration and the image size.
struct Plan {
    config: HogConfig,
    width: usize,
    cell_cols: usize,
    bins: Vec<(f64, f64)>,
    rows: Vec<Tap>,
    cols: Vec<Tap>,
    /// For each row and each column of cells: whether a token needs it.
    needed_rows: Vec<bool>,
    needed_cols: Vec<bool>,
}

#[derive(Default)]
struct Scratch {
    grey: Vec<f32>,
    gradient: GradientRow,
    histograms: Vec<f32>,
    cells: Vec<f64>,
    /// Two rows of the block map, filled only in the columns that a token needs.
    blocks: [Vec<f32>; 2],
}

impl Plan {
    fn new(config: &HogConfig, height: usize, width: usize) -> Result<Self, ClassicError> {
        config.validate()?;
        let HogConfig {
            grid,
            pixels_per_cell,
            cells_per_block,
            ..
        } = *config;
        let (cell_rows, cell_cols) = (height / pixels_per_cell, width / pixels_per_cell);
        if cell_rows < cells_per_block || cell_cols < cells_per_block {
            return Err(ClassicError::Size {
                encoder: "hog",
                height,
                width,
                needed: format!(
                    "one block of {config} needs {0}x{0} pixels",
                    pixels_per_cell * cells_per_block
                ),
            });
        }
        let rows = Tap::resize(cell_rows - cells_per_block + 1, grid);
        let cols = Tap::resize(cell_cols - cells_per_block + 1, grid);
        let needed = |taps: &[Tap], cells: usize| {
            let mut needed = vec![false; cells];
            for start in taps.iter().flat_map(|tap| [tap.low, tap.high]) {
                needed[start..start + cells_per_block].fill(true);
            }
            needed
        };
        Ok(Self {
            width,
            cell_cols,
            bins: bin_starts(config.orientations()),
            needed_rows: needed(&rows, cell_rows),
            needed_cols: needed(&cols, cell_cols),
            rows,
            cols,
            config: *config,
        })
    }

    fn encode<P: Pixel>(&self, s: &mut Scratch, image: ArrayView3<'_, P>, tokens: &mut [f32]) {
        map_rgb(image, &mut s.grey, grey);
        self.histograms(&s.grey, &mut s.gradient, &mut s.histograms);

        let dim = self.config.dim;
        let row_len = (self.cell_cols - self.config.cells_per_block + 1) * dim;
        for row in &mut s.blocks {
            row.resize(row_len, 0.0);
        }
        let [upper, lower] = &mut s.blocks;
        let token_rows = tokens.chunks_exact_mut(self.cols.len() * dim);
        for (row, token_row) in self.rows.iter().zip(token_rows) {
            for col in self.cols.iter().flat_map(|tap| [tap.low, tap.high]) {
                let range = col * dim..(col + 1) * dim;
                self.block(
                    &s.histograms,
                    (row.low, col),
                    &mut s.cells,
                    &mut upper[range.clone()],
                );
                self.block(
                    &s.histograms,
                    (row.high, col),
                    &mut s.cells,
                    &mut lower[range],
                );
            }
            for (col, token) in self.cols.iter().zip(token_row.chunks_exact_mut(dim)) {
                let (low, high) = (col.low * dim, col.high * dim);
                for (d, value) in token.iter_mut().enumerate() {
                    *value = row.interpolate(
                        col.interpolate(upper[low + d], upper[high + d]),
                        col.interpolate(lower[low + d], lower[high + d]),
                    );
                }
            }
        }
    }

    /// Computes the cell histograms `[cell rows, cell columns, orientations]`; cells that no token needs
    /// stay zero.
    fn histograms(&self, grey: &[f32], gradient: &mut GradientRow, out: &mut Vec<f32>) {
        let (ppc, bins) = (self.config.pixels_per_cell, self.bins.len());
        out.clear();
        out.resize(self.needed_rows.len() * self.cell_cols * bins, 0.0);
        let cell_rows = out.chunks_exact_mut(self.cell_cols * bins);
        for (r, cells) in cell_rows.enumerate().filter(|(r, _)| self.needed_rows[*r]) {
            for y in r * ppc..(r + 1) * ppc {
                gradient.compute(grey, self.width, y, &self.bins);
                let votes = gradient.magnitude.chunks_exact(ppc);
                let votes = votes.zip(gradient.bin.chunks_exact(ppc));
                let cells = cells.chunks_exact_mut(bins).zip(&self.needed_cols);
                for ((cell, _), (magnitudes, bins)) in
                    cells.zip(votes).filter(|((_, needed), _)| **needed)
                {
                    for (&magnitude, &bin) in magnitudes.iter().zip(bins) {
                        let total = &mut cell[bin as usize];
                        *total = (f64::from(*total) + magnitude) as f32;
                    }
                }
            }
            let area = (ppc * ppc) as f32;
            cells.iter_mut().for_each(|total| *total /= area);
        }
    }

    /// Computes the L2-Hys normalised block at `(row, col)`, as scikit-image returns it, and normalises
    /// it once more (L2). `cells` is scratch memory.
    fn block(
        &self,
        histograms: &[f32],
        (row, col): (usize, usize),
        cells: &mut Vec<f64>,
        out: &mut [f32],
    ) {
        self.raw_block(histograms, (row, col), cells, out);
        let norm = out.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
        out.iter_mut().for_each(|v| *v /= norm);
    }

    /// Computes the L2-Hys normalised block at `(row, col)`, flattened in the order (cell row, cell column,
    /// orientation).
    fn raw_block(
        &self,
        histograms: &[f32],
        (row, col): (usize, usize),
        cells: &mut Vec<f64>,
        out: &mut [f32],
    ) {
        let (cb, bins) = (self.config.cells_per_block, self.bins.len());
        cells.clear();
        for r in row..row + cb {
            let start = (r * self.cell_cols + col) * bins;
            cells.extend(
                histograms[start..start + cb * bins]
                    .iter()
                    .map(|&v| f64::from(v)),
            );
        }
        let scale = 1.0 / (sum_of_squares(cells) + BLOCK_EPS * BLOCK_EPS).sqrt();
        cells
            .iter_mut()
            .for_each(|v| *v = (*v * scale).min(BLOCK_CLIP));
        let scale = 1.0 / (sum_of_squares(cells) + BLOCK_EPS * BLOCK_EPS).sqrt();
        for (out, v) in out.iter_mut().zip(cells) {
            *out = (*v * scale) as f32;
        }
    }
}

/// Grey value in 0..=1. Each operation rounds to float32, and the order matters: another order moves
/// gradients of exactly 45 or 90 degrees into a neighbouring bin.
fn grey<P: Pixel>(r: P, g: P, b: P) -> f32 {
    let [r, g, b] = [r, g, b].map(|v| v.value().clamp(0.0, 255.0));
    ((0.2126 * r + 0.7152 * g + 0.0722 * b) / 255.0).clamp(0.0, 1.0)
}

/// Directions (cos, sin) of the lower bounds of the orientation bins. Gradients often lie exactly on
/// multiples of 45 degrees, so these directions are exact (and not normalised).
fn bin_starts(orientations: usize) -> Vec<(f64, f64)> {
    let n = orientations;
    let start = |o: usize| match o {
        o if 4 * o == n => (1.0, 1.0),
        o if 2 * o == n => (0.0, 1.0),
        o if 4 * o == 3 * n => (-1.0, 1.0),
        o => {
            let angle = std::f64::consts::PI * o as f64 / n as f64;
            (angle.cos(), angle.sin())
        }
    };
    (0..n).map(start).collect()
}

/// Gradient magnitudes and orientation bins of one row of pixels.
#[derive(Default)]
struct GradientRow {
    across: Vec<f64>,
    down: Vec<f64>,
    magnitude: Vec<f64>,
    bin: Vec<u32>,
}

impl GradientRow {
    fn compute(&mut self, grey: &[f32], width: usize, y: usize, bins: &[(f64, f64)]) {
        self.differences(grey, width, y);
        self.magnitude.clear();
        let gradients = self.across.iter().zip(&self.down);
        self.magnitude
            .extend(gradients.map(|(x, y)| (x * x + y * y).sqrt()));

        // Orientations are modulo 180 degrees, so every gradient is rotated into [0, 180). Its bin is
        // then the number of lower bounds at or below it, not counting the first bound at 0 degrees,
        // which needs no arc tangent.
        for (x, y) in self.across.iter_mut().zip(&mut self.down) {
            let sign = if *y < 0.0 || (*y == 0.0 && *x < 0.0) {
                -1.0
            } else {
                1.0
            };
            *x *= sign;
            *y *= sign;
        }
        self.bin.clear();
        self.bin.resize(width, 0);
        for (cos, sin) in bins.iter().skip(1) {
            for ((bin, x), y) in self.bin.iter_mut().zip(&self.across).zip(&self.down) {
                *bin += u32::from(y * cos >= x * sin);
            }
        }
    }

    /// Computes central differences without the factor 1/2, rounded to float32, and zero at the image
    /// border.
    fn differences(&mut self, grey: &[f32], width: usize, y: usize) {
        let row = |y: usize| &grey[y * width..(y + 1) * width];
        self.across.clear();
        self.across.resize(width, 0.0);
        for (x, d) in row(y).windows(3).zip(self.across.iter_mut().skip(1)) {
            *d = f64::from(x[2] - x[0]);
        }
        self.down.clear();
        self.down.resize(width, 0.0);
        if y > 0 && (y + 2) * width <= grey.len() {
            let rows = row(y + 1).iter().zip(row(y - 1));
            for ((below, above), d) in rows.zip(&mut self.down) {
                *d = f64::from(below - above);
            }
        }
    }
}

/// The two source samples that a bilinear resize interpolates (no antialiasing, `align_corners=False`).
struct Tap {
    low: usize,
    high: usize,
    weight: f32,
}

impl Tap {
    fn resize(from_size: usize, to_size: usize) -> Vec<Self> {
        let scale = from_size as f32 / to_size as f32;
        (0..to_size)
            .map(|i| {
                let source = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
                let low = (source as usize).min(from_size - 1);
                Self {
                    low,
                    high: (low + 1).min(from_size - 1),
                    weight: source - low as f32,
                }
            })
            .collect()
    }

    fn interpolate(&self, low: f32, high: f32) -> f32 {
        (1.0 - self.weight) * low + self.weight * high
    }
}

/// Sum of squares with eight fixed partial sums, which the compiler can keep in vector registers.
fn sum_of_squares(values: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let chunks = values.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|v| v * v).sum();
    for chunk in chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *sum += v * v;
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests;
