//! Draws text in Inter, reduced to Latin. The font is embedded in the program so that pictures are the same on every
//! machine.

use ab_glyph::{Font, FontRef, Glyph, InvalidFont, PxScale, ScaleFont, point};

const REGULAR: &[u8] = include_bytes!("../../assets/inter/Inter-Regular.ttf");
const SEMI_BOLD: &[u8] = include_bytes!("../../assets/inter/Inter-SemiBold.ttf");

/// Weight of the font.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    Regular,
    SemiBold,
}

impl Weight {
    pub const ALL: [Weight; 2] = [Weight::Regular, Weight::SemiBold];

    /// The weight as a CSS number.
    pub fn css(self) -> u32 {
        match self {
            Weight::Regular => 400,
            Weight::SemiBold => 600,
        }
    }

    /// The TrueType file.
    pub fn file(self) -> &'static [u8] {
        match self {
            Weight::Regular => REGULAR,
            Weight::SemiBold => SEMI_BOLD,
        }
    }
}

/// The font in both weights.
pub(super) struct Fonts {
    regular: FontRef<'static>,
    semi_bold: FontRef<'static>,
}

impl Fonts {
    /// Parses the embedded font files.
    pub fn embedded() -> Result<Self, InvalidFont> {
        Ok(Self {
            regular: FontRef::try_from_slice(Weight::Regular.file())?,
            semi_bold: FontRef::try_from_slice(Weight::SemiBold.file())?,
        })
    }

    fn font(&self, weight: Weight) -> &FontRef<'static> {
        match weight {
            Weight::Regular => &self.regular,
            Weight::SemiBold => &self.semi_bold,
        }
    }

    /// Returns the width of a text in pixels, for a font of `size` pixels.
    pub fn width(&self, text: &str, size: f32, weight: Weight) -> f32 {
        let font = self.font(weight);
        let font = font.as_scaled(scale(font, size));
        text.chars().map(|c| font.h_advance(font.glyph_id(c))).sum()
    }

    /// Returns `text`, shortened with an ellipsis if it is wider than `width` pixels.
    pub fn fitted(&self, text: &str, size: f32, weight: Weight, width: f32) -> String {
        let mut kept: Vec<char> = text.chars().collect();
        if self.width(text, size, weight) <= width {
            return text.to_owned();
        }
        while kept.pop().is_some() {
            let cut: String = kept.iter().chain(&['…']).collect();
            if self.width(&cut, size, weight) <= width {
                return cut;
            }
        }
        String::new()
    }

    /// Calls `paint(x, y, coverage)` for the pixels of a text that starts at `x` on `baseline`. Coverage is 0 to 1, and
    /// pixels may be outside the page.
    pub fn draw(
        &self,
        text: &str,
        (x, baseline): (f32, f32),
        (size, weight): (f32, Weight),
        mut paint: impl FnMut(i64, i64, f32),
    ) {
        let font = self.font(weight);
        let scale = scale(font, size);
        let scaled = font.as_scaled(scale);
        let mut pen = x;
        for character in text.chars() {
            let id = scaled.glyph_id(character);
            let position = point(pen, baseline);
            pen += scaled.h_advance(id);
            if let Some(outline) = font.outline_glyph(Glyph {
                id,
                scale,
                position,
            }) {
                let corner = outline.px_bounds().min;
                let (left, top) = (corner.x as i64, corner.y as i64);
                outline.draw(|x, y, coverage| {
                    paint(left + i64::from(x), top + i64::from(y), coverage);
                });
            }
        }
    }
}

/// Converts a font size in pixels per em to the scale of ab_glyph, which is relative to the line height.
fn scale(font: &FontRef<'static>, size: f32) -> PxScale {
    let em = font.units_per_em().unwrap_or(1000.0);
    PxScale::from(size * font.height_unscaled() / em)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_those_of_the_font_file() {
        let fonts = Fonts::embedded().unwrap();
        let width = |text: &str, size| fonts.width(text, size, Weight::Regular);
        assert!((width("dinov2", 20.0) - 2.0 * width("dinov2", 10.0)).abs() < 1e-3);
        assert!(width("dinov2-vit-b", 10.0) > 50.0 && width("dinov2-vit-b", 10.0) < 75.0);
        assert!(fonts.width("hog", 10.0, Weight::SemiBold) > width("hog", 10.0));
    }

    #[test]
    fn long_texts_are_shortened_to_the_width() {
        let fonts = Fonts::embedded().unwrap();
        let fitted = |width| fonts.fitted("a long file name.png", 10.0, Weight::Regular, width);
        assert_eq!(fitted(500.0), "a long file name.png");
        let cut = fitted(50.0);
        assert!(cut.starts_with("a l") && cut.ends_with('…'), "{cut}");
        assert!(fonts.width(&cut, 10.0, Weight::Regular) <= 50.0);
        assert_eq!(fitted(1.0), "");
    }

    #[test]
    fn letters_have_ink_between_baseline_and_ascender() {
        let fonts = Fonts::embedded().unwrap();
        let (mut ink, mut top, mut bottom) = (0.0, i64::MAX, i64::MIN);
        fonts.draw(
            "H",
            (5.0, 30.0),
            (20.0, Weight::Regular),
            |_, y, coverage| {
                if coverage > 0.5 {
                    ink += coverage;
                    (top, bottom) = (top.min(y), bottom.max(y));
                }
            },
        );
        assert!(ink > 40.0, "{ink}");
        assert_eq!(bottom, 29);
        assert!((14..=16).contains(&top), "{top}");
    }
}
