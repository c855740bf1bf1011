//! The legend of a sheet: the colour bar and what the maps show.

use alignment::SpatialNorm;

use super::{BAR, GAP, LINE_HEIGHT, Layout};
use crate::visualize::colour::{Scale, viridis};
use crate::visualize::picture::{Align, PlacedImage};

impl Layout<'_> {
    /// Draws the colour bar and explains the maps; returns the lower edge.
    pub(super) fn legend(&mut self, top: u32) -> u32 {
        let left = self.anchors.first().copied().unwrap_or(self.components);
        let (width, height) = (self.cell, self.px(BAR));
        let level = |x: u32| (x * 255 / (width - 1).max(1)) as u8;
        let line: Vec<u8> = (0..width).flat_map(|x| viridis(level(x))).collect();
        self.images.push(PlacedImage {
            x: left,
            y: top,
            width,
            height,
            pixels: line.repeat(height as usize),
            title: "colours of cosine similarity".to_owned(),
        });
        let below = |line: u32| top + height + self.px(LINE_HEIGHT) * (line + 1) - self.px(4.0);
        let (first, second) = (below(0), below(1));
        let Scale { low, high } = self.scale;
        self.muted((left, first), format!("{low:.1}"), Align::Start);
        self.muted((left + width, first), format!("{high:.1}"), Align::End);
        // Zero is labelled only if it does not overlap the labels of the ends.
        let zero = -low / (high - low);
        if (0.2..0.8).contains(&zero) {
            let x = left + (width as f32 * zero).round() as u32;
            self.muted((x, first), "0".to_owned(), Align::Middle);
        }
        let beside = left + width + self.px(GAP);
        self.muted(
            (beside + self.px(GAP), top + height - self.px(3.0)),
            "cosine similarity".to_owned(),
            Align::Start,
        );
        let lowest = match self.sheet.norm {
            SpatialNorm::None => first,
            SpatialNorm::ZScore { alpha, .. } => {
                let text = format!("normalised: z-score over the patches, alpha {alpha}");
                self.muted((left, second), text, Align::Start);
                second
            }
        };
        self.muted(
            (self.components, top + height - self.px(3.0)),
            "the first three as red, green and blue".to_owned(),
            Align::Start,
        );
        lowest + self.px(4.0)
    }
}
