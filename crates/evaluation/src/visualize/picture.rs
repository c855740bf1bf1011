//! Describes a picture as images, frames and texts, independent of the file format.

use super::colour::Rgb;
use super::font::Weight;

/// A white page with images and, in drawing order, shapes on top of them. All coordinates are pixels from the top left corner.
#[derive(Debug)]
pub(super) struct Picture {
    pub width: u32,
    pub height: u32,
    /// Text alternative for screen readers.
    pub description: String,
    pub images: Vec<PlacedImage>,
    pub shapes: Vec<Shape>,
}

/// An image at its place.
#[derive(Debug)]
pub(super) struct PlacedImage {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
    /// RGB bytes `[height, width, 3]`.
    pub pixels: Vec<u8>,
    pub title: String,
}

/// A shape on the page.
#[derive(Debug)]
pub(super) enum Shape {
    /// A filled rectangle.
    Fill { area: Rect, colour: Rgb },
    /// A frame of this thickness around a rectangle, which is not covered.
    Frame {
        area: Rect,
        thickness: u32,
        colour: Rgb,
    },
    /// A line of text.
    Text {
        x: u32,
        /// The y coordinate of the baseline.
        baseline: u32,
        text: String,
        look: Look,
    },
}

/// The style of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// Size of the font (its em) in pixels.
    pub size: f32,
    pub weight: Weight,
    pub colour: Rgb,
    pub align: Align,
}

/// The part of a text that is placed at its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Start,
    Middle,
    End,
}

/// A rectangle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rect {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

impl Rect {
    /// Returns the rectangle, enlarged by `by` pixels on each side.
    pub fn grown(self, by: u32) -> Self {
        Self {
            x: self.x.saturating_sub(by),
            y: self.y.saturating_sub(by),
            width: self.width + 2 * by,
            height: self.height + 2 * by,
        }
    }

    /// The four sides of a frame of this thickness around the rectangle.
    pub fn frame(self, thickness: u32) -> [Self; 4] {
        let outer = self.grown(thickness);
        let line = Self {
            height: thickness,
            ..outer
        };
        let side = Self {
            width: thickness,
            ..outer
        };
        let (right, bottom) = (self.x + self.width, self.y + self.height);
        [
            line,
            Self { y: bottom, ..line },
            side,
            Self { x: right, ..side },
        ]
    }
}
