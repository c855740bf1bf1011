//! Votes of the pixels for the orientations, which do not depend on the keypoint.

use std::ops::Range;

use wide::f32x8;

use super::super::angle::fast_atan2;
use super::layout::{BINS, ORIENTATION};

/// Votes of the pixels of one image for the orientation bins.
pub(super) struct Votes {
    /// Gradient magnitude of each pixel, split between its two nearest orientations; zero on the
    /// border.
    pub bins: Vec<f32x8>,
    /// Votes that OpenCV adds to a wrong cell, as (pixel index, vote), in ascending order of the index.
    pub misplaced: Vec<(usize, f32)>,
    /// Width of the image in pixels.
    pub width: usize,
    /// Height of the image in pixels.
    pub height: usize,
}

impl Votes {
    pub(super) fn new(blurred: &[f32], width: usize) -> Self {
        let height = blurred.len() / width;
        let mut votes = Self {
            bins: vec![f32x8::ZERO; blurred.len()],
            misplaced: Vec::new(),
            width,
            height,
        };
        let last = width.saturating_sub(1);
        for y in 1..height.saturating_sub(1) {
            let row = |y: usize| &blurred[y * width..(y + 1) * width];
            let (above, row, below) = (row(y - 1), row(y), row(y + 1));
            for x in (1..last).step_by(8) {
                let lanes = 8.min(last - x);
                let dx = load(&row[x + 1..x + 1 + lanes]) - load(&row[x - 1..x - 1 + lanes]);
                let dy = load(&above[x..x + lanes]) - load(&below[x..x + lanes]);
                let magnitude = (dx * dx + dy * dy).sqrt().to_array();
                let degrees = fast_atan2(dy, dx) - f32x8::splat(ORIENTATION);
                let position = (degrees * f32x8::splat(BINS as f32 / 360.0)).to_array();
                for lane in 0..lanes {
                    votes.split(y * width + x + lane, position[lane], magnitude[lane]);
                }
            }
        }
        votes
    }

    /// Splits a vote between the two bins next to `position`, which is in -8.03..0. OpenCV wraps the
    /// position into 0..8 by adding 8 once. Positions below -8, which belong to gradients at 0 to 1 degrees,
    /// are left at bin -1. Their flat index then refers to the last orientation slot of the cell in the
    /// previous column, which OpenCV adds to bin 1 of that cell.
    fn split(&mut self, pixel: usize, position: f32, magnitude: f32) {
        let floor = position.floor();
        let upper = magnitude * (position - floor);
        let lower = magnitude - upper;
        let bin = floor as isize + BINS as isize;
        let bins = self.bins[pixel].as_mut_array();
        match usize::try_from(bin) {
            Ok(bin) => {
                bins[bin % BINS] += lower;
                bins[(bin + 1) % BINS] += upper;
            }
            Err(_) => {
                bins[0] += upper;
                if lower > 0.0 {
                    self.misplaced.push((pixel, lower));
                }
            }
        }
    }

    /// Returns the misplaced votes of a range of rows.
    pub(super) fn misplaced_in(&self, rows: Range<usize>) -> &[(usize, f32)] {
        let before = |row: usize| {
            self.misplaced
                .partition_point(|(pixel, _)| *pixel < row * self.width)
        };
        &self.misplaced[before(rows.start)..before(rows.end)]
    }
}

/// Loads up to eight values and fills the rest with zeros.
fn load(values: &[f32]) -> f32x8 {
    let mut lanes = [0.0; 8];
    lanes[..values.len()].copy_from_slice(values);
    f32x8::from(lanes)
}
