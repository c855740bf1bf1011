//! Inter, reduced to Latin, as a font of plotters. It is embedded in the program so that pictures are the same on every
//! machine.

use plotters::style::{FontDesc, FontFamily, FontStyle, register_font};

use super::error::VisualizeError;

const REGULAR: &[u8] = include_bytes!("../../assets/inter/Inter-Regular.ttf");
const SEMI_BOLD: &[u8] = include_bytes!("../../assets/inter/Inter-SemiBold.ttf");

/// The name of the font.
pub(super) const FAMILY: &str = "Inter";
/// Size of a font in plotters, relative to its em.
pub(super) const SIZE_PER_EM: f64 = 1.24;

/// Weight of the font.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    Regular,
    SemiBold,
}

impl Weight {
    pub const ALL: [Weight; 2] = [Weight::Regular, Weight::SemiBold];

    /// The weight as a CSS keyword. Plotters knows one heavier weight.
    pub fn css(self) -> &'static str {
        match self {
            Weight::Regular => "normal",
            Weight::SemiBold => "bold",
        }
    }

    /// The TrueType file.
    pub fn file(self) -> &'static [u8] {
        match self {
            Weight::Regular => REGULAR,
            Weight::SemiBold => SEMI_BOLD,
        }
    }

    fn style(self) -> FontStyle {
        match self {
            Weight::Regular => FontStyle::Normal,
            Weight::SemiBold => FontStyle::Bold,
        }
    }
}

/// The font in both weights.
pub(super) struct Fonts(());

impl Fonts {
    /// Registers the embedded font files with plotters.
    pub fn embedded() -> Result<Self, VisualizeError> {
        for weight in Weight::ALL {
            register_font(FAMILY, weight.style(), weight.file())
                .map_err(|_| VisualizeError::Font)?;
        }
        Ok(Self(()))
    }

    /// The font whose em has `size` pixels.
    pub fn font(&self, size: f32, weight: Weight) -> FontDesc<'static> {
        let size = f64::from(size) * SIZE_PER_EM;
        FontDesc::new(FontFamily::Name(FAMILY), size, weight.style())
    }

    /// Returns the width of a text in pixels, for a font of `size` pixels.
    pub fn width(&self, text: &str, size: f32, weight: Weight) -> f32 {
        // A registered font can measure any text.
        let size = self.font(size, weight).box_size(text);
        size.map_or(0.0, |(width, _)| width as f32)
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_those_of_the_font_file() {
        let fonts = Fonts::embedded().unwrap();
        let width = |text: &str, size| fonts.width(text, size, Weight::Regular);
        assert!((width("dinov2", 20.0) - 2.0 * width("dinov2", 10.0)).abs() <= 1.0);
        assert!(width("dinov2-vit-b", 10.0) > 50.0 && width("dinov2-vit-b", 10.0) < 75.0);
        assert!(fonts.width("hog", 30.0, Weight::SemiBold) > width("hog", 30.0));
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
}
