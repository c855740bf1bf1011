//! The spatial weights around a keypoint.

use std::ops::Range;

use wide::f32x8;

use super::super::SIFT_STRIDE;
use super::votes::Votes;
use super::{BINS, CELLS, ORIENTATION};

/// A descriptor before normalisation: orientations of the cells, row-major.
pub(super) type Cells = [[f32; BINS]; CELLS * CELLS];

/// Pixels from the keypoint to the furthest corner of its window, along one axis: 2.5 cells of 24
/// pixels, turned by one degree.
const REACH: usize = 61;
const SIDE: usize = 2 * REACH + 1;

/// Trilinear and Gaussian weights of each pixel offset for the four cells nearest to it.
///
/// The offsets fall into 5x5 regions, inside which the four cells are the same; the outer regions
/// lie beyond the outer cells' centres, where some of the four are not part of the descriptor.
pub(super) struct Window {
    /// Weights of offset (row, column) for the cells (0, 0), (0, 1), (1, 0), (1, 1) of its region.
    weights: Vec<[f32; 4]>,
    /// First cell row and column of the region of an offset, -1..=3; none outside the window.
    corner: Vec<Option<(isize, isize)>>,
    runs: Vec<Run>,
}

/// Offsets of one row that lie in one region.
struct Run {
    /// Row offset plus `REACH`.
    row: usize,
    /// Column offsets plus `REACH`.
    columns: Range<usize>,
    corner: (isize, isize),
}

impl Window {
    pub(super) fn new() -> Self {
        // Size 16 is a scale of 8, and a cell is three scales wide.
        let cell = 3.0 * SIFT_STRIDE as f64 / 2.0;
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
        // Neighbouring runs then add to the same cells.
        window.runs.sort_by_key(|run| run.corner);
        window
    }

    /// Sums the votes around the keypoint at `(y, x)` into its cells.
    pub(super) fn describe(&self, votes: &Votes, (y, x): (usize, usize)) -> Cells {
        let mut cells = [[0.0; BINS]; CELLS * CELLS];
        for same in self.runs.chunk_by(|a, b| a.corner == b.corner) {
            let corner = same[0].corner;
            let sums = same.iter().filter_map(|run| run.clip(self, votes, (y, x)));
            let sums = match region(corner) {
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
        self.misplaced(votes, (y, x), &mut cells);
        cells
    }

    /// Adds the votes that land one column to the left, in bin 1.
    fn misplaced(&self, votes: &Votes, (y, x): (usize, usize), cells: &mut Cells) {
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
    /// The weights and votes of the run's pixels inside the image, for a keypoint at `(y, x)`.
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
    let part = |at: isize, step: usize| {
        usize::try_from(at + step as isize)
            .ok()
            .filter(|at| *at < CELLS)
    };
    Some(part(row, k / 2)? * CELLS + part(column, k % 2)?)
}

/// Which of the four cells of a region are part of the descriptor, as a bit mask.
fn region(corner: (isize, isize)) -> u8 {
    (0..4)
        .filter(|k| cell(corner, *k).is_some())
        .fold(0, |mask, k| mask | 1 << k)
}

/// Sums weighted votes into the cells of `MASK`. The mask is constant so that the sums stay in
/// registers and cells outside the descriptor cost nothing.
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
