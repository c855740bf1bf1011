//! Draws in pixels on plotters' SVG backend, and defines the colours of all plots.

use std::fmt::Write as _;

use maud::{PreEscaped, html};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::markup::{printable, svg_content};

/// An error of plotters; drawing into a string returns none in practice.
pub(crate) type DrawError = DrawingAreaErrorKind<std::io::Error>;

/// Factor by which pictures are drawn larger than they are shown, because plotters rounds to whole pixels.
const SCALE: f64 = 10.0;
/// Factor by which plotters divides a font size when it writes an SVG.
const FONT_SCALE: f64 = 1.24;
/// Mean width of a letter, as a fraction of the font size.
const LETTER: f64 = 0.56;

/// Size of ordinary text, in pixels.
pub(super) const TEXT: f64 = 11.5;
/// Size of ticks and other secondary text, in pixels.
pub(super) const SMALL: f64 = 10.5;

const PAGE: RGBColor = RGBColor(0xFF, 0xFF, 0xFF);
/// Text.
pub(super) const INK: RGBColor = RGBColor(0x1B, 0x1F, 0x24);
/// Secondary text and helper lines.
pub(super) const MUTED: RGBColor = RGBColor(0x59, 0x63, 0x6E);
/// Axis lines.
pub(super) const AXIS: RGBColor = RGBColor(0x9A, 0xA3, 0xAD);
/// Grid lines.
pub(super) const GRID: RGBColor = RGBColor(0xE6, 0xE9, 0xED);
/// The baseline without alignment.
pub(super) const BASELINE: RGBColor = RGBColor(0x3C, 0x43, 0x4B);
/// The colours of recipes, in order: those of Okabe and Ito, darkened until text in them is legible.
pub(super) const RECIPES: [RGBColor; 6] = [
    RGBColor(0x00, 0x64, 0xA6),
    RGBColor(0xBF, 0x4E, 0x00),
    RGBColor(0x00, 0x75, 0x57),
    RGBColor(0xA4, 0x42, 0x7B),
    RGBColor(0x86, 0x5E, 0x00),
    RGBColor(0x2B, 0x83, 0xB8),
];

/// Each colour and its replacement on a dark page.
const DARK: [(RGBColor, &str); 12] = [
    (PAGE, "#15181C"),
    (INK, "#E6E8EB"),
    (MUTED, "#A0A9B4"),
    (AXIS, "#5C6570"),
    (GRID, "#2A3037"),
    (BASELINE, "#CBD1D8"),
    (RECIPES[0], "#5AB0F0"),
    (RECIPES[1], "#FF9248"),
    (RECIPES[2], "#35C79B"),
    (RECIPES[3], "#E79BC6"),
    (RECIPES[4], "#E0B040"),
    (RECIPES[5], "#8CCBEF"),
];

/// Style rules that apply the dark colours to the plots below `scope` (a CSS selector).
pub(crate) fn dark_rules(scope: &str) -> String {
    let mut rules = String::new();
    for (RGBColor(r, g, b), dark) in DARK {
        let light = format!("#{r:02X}{g:02X}{b:02X}");
        for property in ["fill", "stroke"] {
            let _ = writeln!(
                rules,
                "{scope} [{property}=\"{light}\"] {{ {property}: {dark}; }}"
            );
        }
    }
    rules
}

/// Horizontal alignment of a text relative to its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Centre,
    Right,
}

/// The style of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub size: f64,
    pub colour: RGBColor,
    pub bold: bool,
    pub align: Align,
    pub vertical: bool,
}

impl Look {
    pub fn new(size: f64, colour: RGBColor) -> Self {
        Look {
            size,
            colour,
            bold: false,
            align: Align::Left,
            vertical: false,
        }
    }

    pub fn bold(self) -> Self {
        Look { bold: true, ..self }
    }

    pub fn align(self, align: Align) -> Self {
        Look { align, ..self }
    }

    /// Rotates the text to read from bottom to top.
    pub fn vertical(self) -> Self {
        Look {
            vertical: true,
            ..self
        }
    }
}

/// Shape of a data point, which distinguishes recipes without colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    Circle,
    Triangle,
    Square,
    Diamond,
}

/// A rectangle, in pixels from the top left corner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rect {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

impl Rect {
    pub fn right(&self) -> f64 {
        self.x + self.width
    }

    pub fn bottom(&self) -> f64 {
        self.y + self.height
    }
}

/// Estimated width of `text` in pixels.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * LETTER
}

/// A picture being drawn. All coordinates are pixels from the top left corner.
pub(super) struct Canvas<'a> {
    pub(super) root: DrawingArea<SVGBackend<'a>, Shift>,
}

/// Draws a picture of `width` x `height` pixels; `description` is its text alternative for screen readers.
pub(super) fn picture(
    (width, height): (f64, f64),
    description: &str,
    draw: impl FnOnce(&Canvas<'_>) -> Result<(), DrawError>,
) -> Result<String, DrawError> {
    let mut svg = String::new();
    {
        let size = (pixel(width).unsigned_abs(), pixel(height).unsigned_abs());
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&PAGE)?;
        let canvas = Canvas { root };
        draw(&canvas)?;
        canvas.root.present()?;
    }
    let svg = html! {
        svg xmlns="http://www.w3.org/2000/svg" width=(format!("{width:.0}")) height=(format!("{height:.0}"))
            viewBox={ "0 0 " (pixel(width)) " " (pixel(height)) } role="img" stroke-linejoin="round"
            stroke-linecap="round" {
            title { (description) }
            // Its own attributes state the size in drawn pixels.
            (PreEscaped(svg_content(&svg)))
        }
    };
    Ok(printable(&svg.into_string()))
}

/// Converts shown pixels to drawn pixels.
pub(super) fn pixel(value: f64) -> i32 {
    (value * SCALE).round() as i32
}

/// As [`pixel`], for both coordinates.
pub(super) fn point((x, y): (f64, f64)) -> (i32, i32) {
    (pixel(x), pixel(y))
}

pub(super) fn stroke(colour: RGBColor, width: f64, opacity: f64) -> ShapeStyle {
    colour
        .mix(opacity)
        .stroke_width(pixel(width).unsigned_abs())
}

pub(super) fn text_style(look: Look) -> TextStyle<'static> {
    let style = if look.bold {
        FontStyle::Bold
    } else {
        FontStyle::Normal
    };
    let mut font = FontDesc::new(FontFamily::SansSerif, look.size * SCALE * FONT_SCALE, style);
    if look.vertical {
        font = font.transform(FontTransform::Rotate270);
    }
    let h_pos = match look.align {
        Align::Left => HPos::Left,
        Align::Centre => HPos::Center,
        Align::Right => HPos::Right,
    };
    TextStyle {
        font,
        color: look.colour.to_backend_color(),
        pos: Pos::new(h_pos, VPos::Center),
    }
}

impl Canvas<'_> {
    /// Draws a polyline.
    pub fn line(
        &self,
        points: &[(f64, f64)],
        colour: RGBColor,
        width: f64,
        opacity: f64,
    ) -> Result<(), DrawError> {
        if points.len() < 2 {
            return Ok(());
        }
        let points: Vec<(i32, i32)> = points.iter().copied().map(point).collect();
        self.root
            .draw(&PathElement::new(points, stroke(colour, width, opacity)))
    }

    /// Draws a dashed straight line.
    pub fn dashed(
        &self,
        from: (f64, f64),
        to: (f64, f64),
        colour: RGBColor,
        width: f64,
    ) -> Result<(), DrawError> {
        let length = (to.0 - from.0).hypot(to.1 - from.1);
        let position = |distance: f64| {
            let fraction = distance / length;
            (
                from.0 + (to.0 - from.0) * fraction,
                from.1 + (to.1 - from.1) * fraction,
            )
        };
        let (dash, gap) = (4.0, 4.0);
        let mut start = 0.0;
        while start < length {
            let end = (start + dash).min(length);
            self.line(&[position(start), position(end)], colour, width, 1.0)?;
            start += dash + gap;
        }
        Ok(())
    }

    /// Draws a text, vertically centred on `position`.
    pub fn text(&self, text: &str, position: (f64, f64), look: Look) -> Result<(), DrawError> {
        self.root.draw(&Text::new(
            text.to_owned(),
            point(position),
            text_style(look),
        ))
    }

    /// Draws a data point.
    pub fn marker(
        &self,
        (x, y): (f64, f64),
        marker: Marker,
        radius: f64,
        colour: RGBColor,
        opacity: f64,
    ) -> Result<(), DrawError> {
        let filled = colour.mix(opacity).filled();
        let around = |corners: &[(f64, f64)]| -> Vec<(i32, i32)> {
            let corners = corners.iter();
            corners
                .map(|(dx, dy)| point((x + dx * radius, y + dy * radius)))
                .collect()
        };
        // The factors make the areas of all four shapes about equal.
        let corners = match marker {
            Marker::Circle => {
                let circle = Circle::new(point((x, y)), pixel(radius), filled);
                return self.root.draw(&circle);
            }
            Marker::Triangle => around(&[(0.0, -1.3), (1.2, 0.85), (-1.2, 0.85)]),
            Marker::Square => around(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            Marker::Diamond => around(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
        };
        self.root.draw(&Polygon::new(corners, filled))
    }
}
