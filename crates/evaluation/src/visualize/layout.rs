//! Arranges images, maps and labels on a sheet.
//!
//! ```text
//! title of the image              similarity to patch 8,8     components
//!                                 raw        normalised       raw   normalised
//! encoder  image with anchors     map        map              map   map
//! encoder                         map        map              map   map
//! ```
//!
//! All lengths are given for maps of 256 pixels and scale with the maps.

mod legend;

use data::pillow::{Filter, resize};
use encoders::Grid;
use ndarray::{Array1, Array2};

use super::anchor::Patch;
use super::colour::{INK, LINE, MUTED, PAGE, Rgb, Scale, anchor_colour, byte, viridis};
use super::error::VisualizeError;
use super::font::{Fonts, Weight};
use super::maps::{Maps, Row, TokenMaps};
use super::picture::{Align, Look, Picture, PlacedImage, Rect, Shape};
use super::sheet::{Sheet, cell_side};

/// Side of the map that the lengths below refer to, in pixels.
const UNIT: f64 = 256.0;
const MARGIN: f64 = 24.0;
/// Gap between the two maps of a pair, and between rows.
const GAP: f64 = 8.0;
/// Gap between pairs, and after labels.
const GROUP_GAP: f64 = 26.0;
/// Gap between blocks, and above the legend.
const BLOCK_GAP: f64 = 40.0;
/// Distance from the top of a block to its first row.
const HEADING: f64 = 84.0;
const TEXT: f64 = 24.0;
const SMALL: f64 = 21.0;
const LINE_HEIGHT: f64 = 29.0;
/// Thickness of an anchor's frame, and of the white line around it.
const FRAME: f64 = 4.0;
const CASING: f64 = 2.0;
const BAR: f64 = 18.0;

/// Names of the two maps of a pair.
const PAIR: [&str; 2] = ["raw", "normalised"];

/// Arranges the sheet as a picture.
pub(super) fn layout(sheet: &Sheet, fonts: &Fonts) -> Result<Picture, VisualizeError> {
    Layout::new(sheet, fonts).draw()
}

struct Layout<'a> {
    sheet: &'a Sheet,
    fonts: &'a Fonts,
    scale: Scale,
    /// Side of a map.
    cell: u32,
    /// Left edge of the image with its anchors.
    image: u32,
    /// Left edges of the pairs of similarity maps, one per anchor.
    anchors: Vec<u32>,
    /// Left edge of the pair of components.
    components: u32,
    images: Vec<PlacedImage>,
    shapes: Vec<Shape>,
}

/// Converts a length for maps of [`UNIT`] pixels to one for maps of `cell` pixels.
fn pixels(cell: u32, length: f64) -> u32 {
    (length * f64::from(cell) / UNIT).round() as u32
}

/// The text under an encoder's name: the shape of its tokens.
fn token_shape(row: &Row) -> String {
    match row.images.first() {
        Some(maps) => format!("{} × {} × {}", maps.grid.height, maps.grid.width, row.width),
        None => String::new(),
    }
}

impl<'a> Layout<'a> {
    fn new(sheet: &'a Sheet, fonts: &'a Fonts) -> Self {
        let cell = cell_side(sheet.images.resolution());
        let px = |length| pixels(cell, length);
        let labels = sheet.rows.iter().map(|row| {
            let name = fonts.width(&row.encoder, px(TEXT) as f32, Weight::SemiBold);
            name.max(fonts.width(&token_shape(row), px(SMALL) as f32, Weight::Regular))
        });
        let label = labels.fold(0.0, f32::max).ceil() as u32;
        let anchors = sheet.rows.iter().flat_map(|row| &row.images);
        let anchors = anchors.map(|maps| maps.anchors.len()).max().unwrap_or(0);

        let image = px(MARGIN) + label + px(GROUP_GAP);
        let first = image + cell + px(GROUP_GAP);
        let pair = 2 * cell + px(GAP) + px(GROUP_GAP);
        let lefts = (0..anchors as u32).map(|index| first + index * pair);
        Self {
            sheet,
            fonts,
            scale: Scale::of(&sheet.rows),
            cell,
            image,
            anchors: lefts.collect(),
            components: first + anchors as u32 * pair,
            images: Vec::new(),
            shapes: Vec::new(),
        }
    }

    fn px(&self, length: f64) -> u32 {
        pixels(self.cell, length)
    }

    /// Left edges of the two maps of a pair.
    fn pair(&self, left: u32) -> [u32; 2] {
        [left, left + self.cell + self.px(GAP)]
    }

    fn draw(mut self) -> Result<Picture, VisualizeError> {
        let mut y = self.px(MARGIN);
        for image in 0..self.sheet.images.len() {
            y = self.block(image, y)? + self.px(BLOCK_GAP);
        }
        let bottom = self.legend(y);
        let encoders: Vec<&str> = self
            .sheet
            .rows
            .iter()
            .map(|row| row.encoder.as_str())
            .collect();
        Ok(Picture {
            width: self.components + 2 * self.cell + self.px(GAP) + self.px(MARGIN),
            height: bottom + self.px(MARGIN),
            description: format!(
                "Self-similarity and principal components of patch tokens: {}",
                encoders.join(", ")
            ),
            images: self.images,
            shapes: self.shapes,
        })
    }

    /// Draws the block of one image and returns its lower edge.
    fn block(&mut self, image: usize, top: u32) -> Result<u32, VisualizeError> {
        let sheet = self.sheet;
        self.heading(image, top);
        let mut y = top + self.px(HEADING);
        for (index, row) in sheet.rows.iter().enumerate() {
            let Some(maps) = row.images.get(image) else {
                continue;
            };
            if index == 0 {
                self.image(image, maps, y)?;
            }
            self.label(row, y);
            self.maps(&row.encoder, maps, y)?;
            y += self.cell + self.px(GAP);
        }
        Ok(y.saturating_sub(self.px(GAP)))
    }

    /// Draws the title of the image and the headings of the pairs.
    fn heading(&mut self, image: usize, top: u32) {
        let sheet = self.sheet;
        let upper = top + self.px(TEXT);
        let lower = top + self.px(HEADING) - self.px(13.0);
        if let Some(title) = sheet.images.titles.get(image) {
            let margin = self.px(MARGIN);
            let width = (self.image + self.cell - margin) as f32;
            let size = self.px(TEXT) as f32;
            let title = self.fonts.fitted(title, size, Weight::SemiBold, width);
            self.text((margin, lower), title, TEXT, Weight::SemiBold, Align::Start);
        }
        let patches = sheet.rows.first().and_then(|row| row.images.get(image));
        let patches = patches.map_or(&[][..], |maps| &maps.anchors);
        for (index, patch) in patches.iter().enumerate() {
            let Some(&left) = self.anchors.get(index) else {
                continue;
            };
            let swatch = self.px(17.0);
            let area = Rect {
                x: left,
                y: upper - swatch,
                width: swatch,
                height: swatch,
            };
            let colour = anchor_colour(index);
            self.shapes.push(Shape::Fill { area, colour });
            // On another grid, the anchor is another patch.
            let mut rows = sheet.rows.iter().filter_map(|row| row.images.get(image));
            let title = match rows.all(|maps| maps.anchors.get(index) == Some(patch)) {
                true => format!("similarity to patch {},{}", patch.row, patch.column),
                false => format!("similarity to anchor {}", index + 1),
            };
            self.group(left, left + swatch + self.px(GAP), &title, (upper, lower));
        }
        let left = self.components;
        self.group(left, left, "principal components", (upper, lower));
    }

    /// Draws the heading of a pair: its title, a line, and the names of the two maps.
    fn group(&mut self, left: u32, title_left: u32, title: &str, (upper, lower): (u32, u32)) {
        self.text(
            (title_left, upper),
            title.to_owned(),
            TEXT,
            Weight::Regular,
            Align::Start,
        );
        let line = Rect {
            x: left,
            y: upper + self.px(9.0),
            width: 2 * self.cell + self.px(GAP),
            height: self.px(1.5).max(1),
        };
        self.shapes.push(Shape::Fill {
            area: line,
            colour: LINE,
        });
        for (name, x) in PAIR.into_iter().zip(self.pair(left)) {
            let middle = x + self.cell / 2;
            self.muted((middle, lower), name.to_owned(), Align::Middle);
        }
    }

    /// Draws the encoder's name next to the middle of its row.
    fn label(&mut self, row: &Row, top: u32) {
        let margin = self.px(MARGIN);
        let middle = top + self.cell / 2;
        let name = row.encoder.clone();
        self.text((margin, middle), name, TEXT, Weight::SemiBold, Align::Start);
        let below = middle + self.px(LINE_HEIGHT);
        self.muted((margin, below), token_shape(row), Align::Start);
    }

    /// Draws the image with its anchors.
    fn image(&mut self, image: usize, maps: &TokenMaps, y: u32) -> Result<(), VisualizeError> {
        let side = self.sheet.images.resolution();
        let Some(planes) = self.sheet.images.planes(image) else {
            return Ok(());
        };
        let plane = planes.len() / 3;
        let colours: Vec<u8> = (0..plane)
            .flat_map(|i| [planes[i], planes[plane + i], planes[2 * plane + i]])
            .collect();
        let enlarged = resize(
            &colours,
            side,
            side,
            3,
            self.cell,
            self.cell,
            Filter::Nearest,
        )?;
        let title = self.sheet.images.titles.get(image).cloned();
        self.picture(self.image, y, enlarged, title.unwrap_or_default());
        for (index, patch) in maps.anchors.iter().enumerate() {
            self.mark(self.image, y, maps.grid, *patch, index);
        }
        Ok(())
    }

    /// Draws the pairs of maps of one encoder for one image.
    fn maps(&mut self, encoder: &str, maps: &TokenMaps, y: u32) -> Result<(), VisualizeError> {
        let grid = maps.grid;
        let both: [&Maps; 2] = [&maps.raw, &maps.normalised];
        for (index, (&patch, left)) in maps.anchors.iter().zip(self.anchors.clone()).enumerate() {
            for ((name, maps), x) in PAIR.into_iter().zip(both).zip(self.pair(left)) {
                let Some(similarity) = maps.similarity.get(index) else {
                    continue;
                };
                let colours = self.similarity(similarity, grid)?;
                let title = format!(
                    "{encoder}, similarity to patch {},{}, {name}",
                    patch.row, patch.column
                );
                self.picture(x, y, colours, title);
                self.mark(x, y, grid, patch, index);
            }
        }
        for ((name, maps), x) in PAIR.into_iter().zip(both).zip(self.pair(self.components)) {
            let colours = self.components(&maps.components, grid)?;
            self.picture(
                x,
                y,
                colours,
                format!("{encoder}, principal components, {name}"),
            );
        }
        Ok(())
    }

    /// Colours `[cell, cell, 3]` of a similarity map `[T]`.
    fn similarity(&self, map: &Array1<f32>, grid: Grid) -> Result<Vec<u8>, VisualizeError> {
        // Levels are enlarged, not colours: the colour map is not linear between two colours.
        let levels: Vec<u8> = map.iter().map(|&value| self.scale.level(value)).collect();
        let levels = self.enlarged(&levels, grid, 1)?;
        Ok(levels.into_iter().flat_map(viridis).collect())
    }

    /// Colours `[cell, cell, 3]` of components `[T, 3]`.
    fn components(&self, map: &Array2<f32>, grid: Grid) -> Result<Vec<u8>, VisualizeError> {
        let bytes: Vec<u8> = map.iter().map(|&fraction| byte(fraction)).collect();
        self.enlarged(&bytes, grid, 3)
    }

    fn enlarged(
        &self,
        bytes: &[u8],
        grid: Grid,
        channels: usize,
    ) -> Result<Vec<u8>, VisualizeError> {
        let side = |patches: usize| u32::try_from(patches).unwrap_or(u32::MAX);
        let (width, height) = (side(grid.width), side(grid.height));
        let filter = match self.sheet.smooth {
            true => Filter::Bicubic,
            false => Filter::Nearest,
        };
        Ok(resize(
            bytes, width, height, channels, self.cell, self.cell, filter,
        )?)
    }

    fn picture(&mut self, x: u32, y: u32, pixels: Vec<u8>, title: String) {
        self.images.push(PlacedImage {
            x,
            y,
            width: self.cell,
            height: self.cell,
            pixels,
            title,
        });
    }

    /// Draws a frame around a patch of the map at `left`, `top`, without covering the patch.
    fn mark(&mut self, left: u32, top: u32, grid: Grid, patch: Patch, index: usize) {
        let edge = |index: usize, patches: usize| {
            (index as f64 * f64::from(self.cell) / patches as f64).round() as u32
        };
        let (x, y) = (edge(patch.column, grid.width), edge(patch.row, grid.height));
        let area = Rect {
            x: left + x,
            y: top + y,
            width: edge(patch.column + 1, grid.width) - x,
            height: edge(patch.row + 1, grid.height) - y,
        };
        let (frame, casing) = (self.px(FRAME).max(2), self.px(CASING).max(1));
        self.shapes.push(Shape::Frame {
            area: area.grown(frame),
            thickness: casing,
            colour: PAGE,
        });
        self.shapes.push(Shape::Frame {
            area,
            thickness: frame,
            colour: anchor_colour(index),
        });
    }

    fn muted(&mut self, point: (u32, u32), text: String, align: Align) {
        self.push_text(point, text, (SMALL, Weight::Regular, MUTED), align);
    }

    fn text(&mut self, point: (u32, u32), text: String, size: f64, weight: Weight, align: Align) {
        self.push_text(point, text, (size, weight, INK), align);
    }

    fn push_text(
        &mut self,
        (x, baseline): (u32, u32),
        text: String,
        (size, weight, colour): (f64, Weight, Rgb),
        align: Align,
    ) {
        let look = Look {
            size: self.px(size) as f32,
            weight,
            colour,
            align,
        };
        self.shapes.push(Shape::Text {
            x,
            baseline,
            text,
            look,
        });
    }
}
