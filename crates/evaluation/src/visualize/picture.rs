//! Describes a picture as rasters, frames and texts, independent of the file format.

use super::colour::Rgb;
use super::font::Weight;

/// A white page with shapes in drawing order. All coordinates are pixels from the top left corner.
#[derive(Debug)]
pub(super) struct Picture {
    pub width: u32,
    pub height: u32,
    /// Text alternative for screen readers.
    pub description: String,
    pub shapes: Vec<Shape>,
}

/// A shape on the page.
#[derive(Debug)]
pub(super) enum Shape {
    /// An image, with its title.
    Image {
        x: u32,
        y: u32,
        raster: Raster,
        title: String,
    },
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
}

/// RGB bytes `[height, width, 3]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Raster {
    pub width: u32,
    pub height: u32,
    pub pixels: Vec<u8>,
}
