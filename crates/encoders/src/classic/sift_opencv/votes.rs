//! What each pixel votes for, whichever keypoint looks at it.

use std::ops::Range;

use super::super::angle::fast_atan2;
use super::{BINS, ORIENTATION};

/// Votes of the pixels of one image into the orientation bins.
pub(super) struct Votes {
    /// Gradient magnitude of each pixel, split between its two nearest orientations; zero on the
    /// border.
    pub bins: Vec<[f32; BINS]>,
    /// Votes that OpenCV misplaces, by pixel index, ascending.
    pub misplaced: Vec<(usize, f32)>,
    /// Side lengths of the image.
    pub width: usize,
    pub height: usize,
}

impl Votes {
    pub(super) fn new(blurred: &[f32], width: usize) -> Self {
        let height = blurred.len() / width;
        let mut votes = Self {
            bins: vec![[0.0; BINS]; blurred.len()],
            misplaced: Vec::new(),
            width,
            height,
        };
        let mut gradients = vec![(0.0, 0.0); width.saturating_sub(2)];
        for y in 1..height.saturating_sub(1) {
            let row = |y: usize| &blurred[y * width..(y + 1) * width];
            let vertical = row(y - 1)[1..].iter().zip(&row(y + 1)[1..]);
            for ((out, x), (above, below)) in
                gradients.iter_mut().zip(row(y).windows(3)).zip(vertical)
            {
                let (dx, dy) = (x[2] - x[0], above - below);
                let magnitude = (dx * dx + dy * dy).sqrt();
                let degrees = fast_atan2(dy, dx);
                *out = ((degrees - ORIENTATION) * (BINS as f32 / 360.0), magnitude);
            }
            for (x, &(position, magnitude)) in gradients.iter().enumerate() {
                votes.cast(y * width + x + 1, position, magnitude);
            }
        }
        votes
    }

    /// Splits a vote at `position`, -8.03..0, which OpenCV wraps into 0..8 by adding 8 once. Below
    /// -8, that is for gradients at 0 to 1 degrees, bin -1 is left: the flat index then names the
    /// last orientation slot of the previous column's cell, which is folded onto bin 1 there.
    fn cast(&mut self, pixel: usize, position: f32, magnitude: f32) {
        let floor = position.floor();
        let upper = magnitude * (position - floor);
        let lower = magnitude - upper;
        let bin = floor as isize + BINS as isize;
        let bins = &mut self.bins[pixel];
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

    /// The misplaced votes of a range of rows.
    pub(super) fn misplaced_in(&self, rows: Range<usize>) -> &[(usize, f32)] {
        let before = |row: usize| {
            self.misplaced
                .partition_point(|(at, _)| *at < row * self.width)
        };
        &self.misplaced[before(rows.start)..before(rows.end)]
    }
}
