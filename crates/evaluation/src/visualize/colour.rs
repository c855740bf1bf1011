//! Maps numbers to colours.

use super::maps::Row;

/// Red, green and blue.
pub(super) type Rgb = [u8; 3];

/// The background of the page.
pub(super) const PAGE: Rgb = [0xFF, 0xFF, 0xFF];
/// Text.
pub(super) const INK: Rgb = [0x1B, 0x1F, 0x24];
/// Secondary text.
pub(super) const MUTED: Rgb = [0x59, 0x63, 0x6E];
/// The lines under the headings.
pub(super) const LINE: Rgb = [0xC4, 0xCA, 0xD1];
/// The colours of anchors, in order. None of them occurs in [`viridis`].
const ANCHORS: [Rgb; 4] = [
    [0xE5, 0x00, 0x2E],
    [0xFF, 0x8A, 0x00],
    [0xE0, 0x4C, 0xE0],
    [0x11, 0x11, 0x11],
];

/// The colour of the anchor at `index`.
pub(super) fn anchor_colour(index: usize) -> Rgb {
    ANCHORS[index % ANCHORS.len()]
}

/// The colour of `level` in matplotlib's viridis, which is perceptually uniform.
pub(super) fn viridis(level: u8) -> Rgb {
    let colour = colorous::VIRIDIS.eval_rational(usize::from(level), 256);
    [colour.r, colour.g, colour.b]
}

/// The similarities at the two ends of the colour map. All maps of a sheet share them, so that encoders can be compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    pub low: f32,
    pub high: f32,
}

impl Scale {
    /// The scale from the lowest similarity of a sheet, rounded down to a tenth, to 1.
    pub fn of(rows: &[Row]) -> Self {
        let maps = rows.iter().flat_map(|row| &row.images);
        let maps = maps.flat_map(|maps| [&maps.raw, &maps.normalised]);
        let values = maps.flat_map(|maps| maps.similarity.iter().flatten());
        Self::from_lowest(values.copied().fold(1.0, f32::min))
    }

    fn from_lowest(lowest: f32) -> Self {
        // Adding 0.0 turns -0.0 into 0.0.
        let tenth = (lowest * 10.0).floor() / 10.0 + 0.0;
        Self {
            low: tenth.clamp(-1.0, 0.9),
            high: 1.0,
        }
    }

    /// The colour level of a similarity, 0 to 255.
    pub fn level(self, similarity: f32) -> u8 {
        byte((similarity - self.low) / (self.high - self.low))
    }
}

/// Converts a fraction from 0 to 1 to a byte.
pub(super) fn byte(fraction: f32) -> u8 {
    (fraction.clamp(0.0, 1.0) * 255.0).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn viridis_goes_from_violet_to_yellow() {
        assert_eq!(viridis(0), [0x44, 0x01, 0x54]);
        assert_eq!(viridis(255), [0xFD, 0xE7, 0x25]);
        let luminance = |level: u8| {
            let [r, g, b] = viridis(level).map(f64::from);
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        assert!((0..255).all(|level| luminance(level) < luminance(level + 1) + 1.0));
    }

    #[test]
    fn the_scale_covers_all_values_and_ends_at_one() {
        assert_eq!(Scale::from_lowest(-0.31).low, -0.4);
        assert_eq!(Scale::from_lowest(0.05).low, 0.0);
        assert_eq!(Scale::from_lowest(1.0).low, 0.9);
        assert_eq!(Scale::from_lowest(-1.0).low, -1.0);
        assert_eq!(format!("{:.1}", Scale::from_lowest(-0.0).low), "0.0");
        let scale = Scale::from_lowest(-0.31);
        assert_eq!((scale.level(1.0), scale.level(-0.4)), (255, 0));
        assert!(scale.level(0.3) > 120 && scale.level(0.3) < 135);
    }
}
