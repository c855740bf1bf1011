//! Spatial weights of the pixels around a keypoint.

use std::ops::Range;

use wide::f32x8;

use super::super::STRIDE;
use super::layout::{BINS, CELLS, ORIENTATION};
use super::votes::Votes;

/// A descriptor before normalisation: the orientation histograms of the cells, row-major.
pub(super) type Cells = [[f32; BINS]; CELLS * CELLS];

/// Largest distance along an axis, in pixels, from the keypoint to a corner of its window: 2.5 cells of
/// 24 pixels, rotated by one degree.
const REACH: usize = 61;
const SIDE: usize = 2 * REACH + 1;

/// Spatial weights, bilinear times Gaussian, of each pixel offset for its four nearest cells.
///
/// The offsets form 5x5 regions with the same four nearest cells. The outer regions are beyond the
/// centres of the outer cells, so some of their four cells are not part of the descriptor.
pub(super) struct Window {
    /// Weights of offset (row, column) for the cells (0, 0), (0, 1), (1, 0), (1, 1) of its region.
    weights: Vec<[f32; 4]>,
    /// First cell row and column of the region of an offset, -1..=3; `None` outside of the window.
    corner: Vec<Option<(isize, isize)>>,
    runs: Vec<Run>,
}

/// Consecutive offsets of one row in the same region.
struct Run {
    /// Row offset plus `REACH`.
    row: usize,
    /// Column offsets plus `REACH`.
    columns: Range<usize>,
    corner: (isize, isize),
}

impl Window {
    pub(super) fn new() -> Self {
        // Size 16 means scale 8, and a cell is three scales wide.
        let cell = 3.0 * STRIDE as f64 / 2.0;
        let (sin, cos) = f64::from(ORIENTATION).to_radians().sin_cos();
        let mut window = Self {
            weights: Vec::new(),
            corner: Vec::new(),
            runs: Vec::new(),
        };
        for row in 0..SIDE {
            let mut previous = None;
            for column in 0..SIDE {
                let (i, j) = (row as f64 - REACH as f64, column as f64 - REACH as f64);
                let (c, r) = ((j * cos - i * sin) / cell, (j * sin + i * cos) / cell);
                let gauss = (-(c * c + r * r) / 8.0).exp();
                let (r, c) = (r + CELLS as f64 / 2.0 - 0.5, c + CELLS as f64 / 2.0 - 0.5);
                let inside = |bin: f64| bin > -1.0 && bin < CELLS as f64;
                let corner =
                    (inside(r) && inside(c)).then_some((r.floor() as isize, c.floor() as isize));

                let (r, c) = (r - r.floor(), c - c.floor());
                let parts = [(1.0 - r) * (1.0 - c), (1.0 - r) * c, r * (1.0 - c), r * c];
                window.weights.push(parts.map(|part| (part * gauss) as f32));
                window.corner.push(corner);
                if let Some(corner) = corner {
                    match window.runs.last_mut() {
                        Some(run) if previous == Some(corner) => run.columns.end = column + 1,
                        _ => window.runs.push(Run {
                            row,
                            columns: column..column + 1,
                            corner,
                        }),
                    }
                }
                previous = corner;
            }
        }
        // Runs of one region add to the same cells, so they must be adjacent.
        window.runs.sort_by_key(|run| run.corner);
        window
    }

    /// Sums the votes around the keypoint at `(y, x)` into its cells.
    pub(super) fn describe(&self, votes: &Votes, (y, x): (usize, usize)) -> Cells {
        let mut cells = [[0.0; BINS]; CELLS * CELLS];
        for runs in self.runs.chunk_by(|a, b| a.corner == b.corner) {
            let corner = runs[0].corner;
            let sums = runs.iter().filter_map(|run| run.clip(self, votes, (y, x)));
            let sums = match cell_mask(corner) {
                0b0001 => accumulate::<0b0001>(sums),
                0b0010 => accumulate::<0b0010>(sums),
                0b0011 => accumulate::<0b0011>(sums),
                0b0100 => accumulate::<0b0100>(sums),
                0b0101 => accumulate::<0b0101>(sums),
                0b1000 => accumulate::<0b1000>(sums),
                0b1010 => accumulate::<0b1010>(sums),
                0b1100 => accumulate::<0b1100>(sums),
                _ => accumulate::<0b1111>(sums),
            };
            for (k, sum) in sums.iter().enumerate() {
                if let Some(cell) = cell(corner, k) {
                    let total = f32x8::from(cells[cell]) + *sum;
                    cells[cell] = total.to_array();
                }
            }
        }
        self.add_misplaced(votes, (y, x), &mut cells);
        cells
    }

    /// Adds the misplaced votes to bin 1 of the cell one column to the left.
    fn add_misplaced(&self, votes: &Votes, (y, x): (usize, usize), cells: &mut Cells) {
        let rows = y.saturating_sub(REACH)..(y + REACH + 1).min(votes.height);
        for &(pixel, vote) in votes.misplaced_in(rows) {
            let (row, column) = (pixel / votes.width + REACH - y, pixel % votes.width + REACH);
            let Some(column) = column.checked_sub(x).filter(|column| *column < SIDE) else {
                continue;
            };
            let Some((r, c)) = self.corner[row * SIDE + column] else {
                continue;
            };
            for (k, weight) in self.weights[row * SIDE + column].iter().enumerate() {
                if let Some(cell) = cell((r, c - 1), k) {
                    cells[cell][1] += weight * vote;
                }
            }
        }
    }
}

impl Run {
    /// Returns the weights and votes of those pixels of the run that are inside the image, for a keypoint
    /// at `(y, x)`; `None` if there are none.
    fn clip<'a>(
        &self,
        window: &'a Window,
        votes: &'a Votes,
        (y, x): (usize, usize),
    ) -> Option<(&'a [[f32; 4]], &'a [f32x8])> {
        let row = (y + self.row)
            .checked_sub(REACH)
            .filter(|row| *row < votes.height)?;
        let start = self.columns.start.max(REACH.saturating_sub(x));
        let end = self.columns.end.min(votes.width + REACH - x);
        if start >= end {
            return None;
        }
        let pixel = row * votes.width + x + start - REACH;
        let weights = &window.weights[self.row * SIDE + start..self.row * SIDE + end];
        Some((weights, &votes.bins[pixel..pixel + end - start]))
    }
}

/// Index of the k-th of the four cells of a region, if it is part of the descriptor.
fn cell((row, column): (isize, isize), k: usize) -> Option<usize> {
    let coordinate = |first: isize, step: usize| {
        usize::try_from(first + step as isize)
            .ok()
            .filter(|coordinate| *coordinate < CELLS)
    };
    Some(coordinate(row, k / 2)? * CELLS + coordinate(column, k % 2)?)
}

/// Bit mask of the four cells of a region that are part of the descriptor.
fn cell_mask(corner: (isize, isize)) -> u8 {
    (0..4)
        .filter(|k| cell(corner, *k).is_some())
        .fold(0, |mask, k| mask | 1 << k)
}

/// Sums weighted votes into the cells of `MASK`. The mask is a constant so that the sums stay in
/// registers and cells outside of the descriptor cost nothing.
fn accumulate<'a, const MASK: u8>(
    runs: impl Iterator<Item = (&'a [[f32; 4]], &'a [f32x8])>,
) -> [f32x8; 4] {
    let mut sums = [f32x8::ZERO; 4];
    for (weights, votes) in runs {
        for (weights, vote) in weights.iter().zip(votes) {
            for k in 0..4 {
                if MASK & (1 << k) != 0 {
                    sums[k] += f32x8::splat(weights[k]) * *vote;
                }
            }
        }
    }
    sums
}
