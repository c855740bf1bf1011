//! From numbers to colours.

use super::maps::Row;

/// Red, green and blue.
pub(super) type Rgb = [u8; 3];

/// The page.
pub(super) const PAGE: Rgb = [0xFF, 0xFF, 0xFF];
/// Text.
pub(super) const INK: Rgb = [0x1B, 0x1F, 0x24];
/// Secondary text.
pub(super) const MUTED: Rgb = [0x59, 0x63, 0x6E];
/// Lines of the headings.
pub(super) const LINE: Rgb = [0xC4, 0xCA, 0xD1];
/// Anchors in turn: none of them is a colour of [`viridis`].
const ANCHORS: [Rgb; 4] = [
    [0xE5, 0x00, 0x2E],
    [0xFF, 0x8A, 0x00],
    [0xE0, 0x4C, 0xE0],
    [0x11, 0x11, 0x11],
];

/// The colour of the n-th anchor.
pub(super) fn of_anchor(index: usize) -> Rgb {
    ANCHORS[index % ANCHORS.len()]
}

/// The colour of a level on matplotlib's viridis, which is perceptually uniform.
pub(super) fn viridis(level: u8) -> Rgb {
    let colour = colorous::VIRIDIS.eval_rational(usize::from(level), 256);
    [colour.r, colour.g, colour.b]
}

/// The similarities that the ends of the colour map stand for. All maps of a sheet share them, so that
/// encoders can be compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    pub low: f32,
    pub high: f32,
}

impl Scale {
    /// From the least similarity of a sheet, rounded down to a tenth, to 1.
    pub fn of(rows: &[Row]) -> Self {
        let maps = rows.iter().flat_map(|row| &row.images);
        let maps = maps.flat_map(|maps| [&maps.raw, &maps.normalised]);
        let values = maps.flat_map(|maps| maps.similarity.iter().flatten());
        Self::from_least(values.copied().fold(1.0, f32::min))
    }

    fn from_least(least: f32) -> Self {
        // Adding zero makes minus zero plain.
        let tenth = (least * 10.0).floor() / 10.0 + 0.0;
        Self {
            low: tenth.clamp(-1.0, 0.9),
            high: 1.0,
        }
    }

    /// The level of a similarity, 0 to 255.
    pub fn level(self, similarity: f32) -> u8 {
        let share = (similarity - self.low) / (self.high - self.low);
        byte(share)
    }
}

/// A share of 0 to 1 as a byte.
pub(super) fn byte(share: f32) -> u8 {
    (share.clamp(0.0, 1.0) * 255.0).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn viridis_runs_from_violet_to_yellow() {
        assert_eq!(viridis(0), [0x44, 0x01, 0x54]);
        assert_eq!(viridis(255), [0xFD, 0xE7, 0x25]);
        let luminance = |level: u8| {
            let [r, g, b] = viridis(level).map(f64::from);
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        assert!((0..255).all(|level| luminance(level) < luminance(level + 1) + 1.0));
    }

    #[test]
    fn the_scale_holds_all_values_and_ends_at_one() {
        assert_eq!(Scale::from_least(-0.31).low, -0.4);
        assert_eq!(Scale::from_least(0.05).low, 0.0);
        assert_eq!(Scale::from_least(1.0).low, 0.9);
        assert_eq!(Scale::from_least(-1.0).low, -1.0);
        assert_eq!(format!("{:.1}", Scale::from_least(-0.0).low), "0.0");
        let scale = Scale::from_least(-0.31);
        assert_eq!((scale.level(1.0), scale.level(-0.4)), (255, 0));
        assert!(scale.level(0.3) > 120 && scale.level(0.3) < 135);
    }
}
