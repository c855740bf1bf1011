//! Renders a picture to pixels.

use super::colour::{PAGE, Rgb};
use super::font::Fonts;
use super::picture::{Align, Look, Picture, Raster, Rect, Shape};

/// Renders a picture.
pub(super) fn render(picture: &Picture, fonts: &Fonts) -> Raster {
    let (width, height) = (picture.width, picture.height);
    let mut page = Raster {
        width,
        height,
        pixels: PAGE.repeat(width as usize * height as usize),
    };
    for shape in &picture.shapes {
        match shape {
            Shape::Image { x, y, raster, .. } => page.paste(raster, *x, *y),
            Shape::Fill { area, colour } => page.fill(*area, *colour),
            Shape::Frame {
                area,
                thickness,
                colour,
            } => page.frame(*area, *thickness, *colour),
            Shape::Text {
                x,
                baseline,
                text,
                look,
            } => page.text((*x, *baseline), text, *look, fonts),
        }
    }
    page
}

impl Raster {
    fn pixel(&mut self, x: i64, y: i64) -> Option<&mut [u8]> {
        let inside =
            (0..i64::from(self.width)).contains(&x) && (0..i64::from(self.height)).contains(&y);
        let start = usize::try_from((y * i64::from(self.width) + x) * 3).ok()?;
        self.pixels.get_mut(start..start + 3).filter(|_| inside)
    }

    fn paste(&mut self, raster: &Raster, left: u32, top: u32) {
        let lines = raster
            .pixels
            .chunks_exact((raster.width as usize * 3).max(1));
        for (y, line) in (i64::from(top)..).zip(lines) {
            for (x, colour) in (i64::from(left)..).zip(line.chunks_exact(3)) {
                if let Some(pixel) = self.pixel(x, y) {
                    pixel.copy_from_slice(colour);
                }
            }
        }
    }

    fn fill(&mut self, area: Rect, colour: Rgb) {
        for y in area.y..area.y + area.height {
            for x in area.x..area.x + area.width {
                if let Some(pixel) = self.pixel(i64::from(x), i64::from(y)) {
                    pixel.copy_from_slice(&colour);
                }
            }
        }
    }

    fn frame(&mut self, area: Rect, thickness: u32, colour: Rgb) {
        let outer = area.grown(thickness);
        let (right, bottom) = (area.x + area.width, area.y + area.height);
        let line = Rect {
            height: thickness,
            ..outer
        };
        let side = Rect {
            width: thickness,
            ..outer
        };
        self.fill(line, colour);
        self.fill(Rect { y: bottom, ..line }, colour);
        self.fill(side, colour);
        self.fill(Rect { x: right, ..side }, colour);
    }

    fn text(&mut self, (x, baseline): (u32, u32), text: &str, look: Look, fonts: &Fonts) {
        let width = fonts.width(text, look.size, look.weight);
        let left = match look.align {
            Align::Start => x as f32,
            Align::Middle => x as f32 - width / 2.0,
            Align::End => x as f32 - width,
        };
        let pen = (left, baseline as f32);
        fonts.draw(text, pen, (look.size, look.weight), |x, y, coverage| {
            if let Some(pixel) = self.pixel(x, y) {
                for (below, ink) in pixel.iter_mut().zip(look.colour) {
                    let (from, to) = (f32::from(*below), f32::from(ink));
                    *below = (from + (to - from) * coverage.clamp(0.0, 1.0)).round() as u8;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::visualize::colour::INK;
    use crate::visualize::font::Weight;

    const RED: Rgb = [255, 0, 0];

    fn drawn(shapes: Vec<Shape>) -> Raster {
        let picture = Picture {
            width: 40,
            height: 20,
            description: String::new(),
            shapes,
        };
        render(&picture, &Fonts::embedded().unwrap())
    }

    fn count(raster: &Raster, colour: Rgb) -> usize {
        let pixels = raster.pixels.chunks_exact(3);
        pixels.filter(|pixel| *pixel == colour).count()
    }

    #[test]
    fn a_frame_does_not_cover_its_area() {
        let area = Rect {
            x: 10,
            y: 5,
            width: 4,
            height: 3,
        };
        let mut page = drawn(vec![Shape::Frame {
            area,
            thickness: 2,
            colour: RED,
        }]);
        assert_eq!(count(&page, RED), 8 * 7 - 4 * 3);
        assert_eq!(page.pixel(10, 5).unwrap(), PAGE);
        assert_eq!(page.pixel(13, 7).unwrap(), PAGE);
        assert_eq!(page.pixel(9, 5).unwrap(), RED);
        assert_eq!(page.pixel(15, 9).unwrap(), RED);
    }

    #[test]
    fn shapes_are_clipped_at_the_edges_of_the_page() {
        let raster = Raster {
            width: 4,
            height: 4,
            pixels: RED.repeat(16),
        };
        let text = |align| Shape::Text {
            x: 2,
            baseline: 2,
            text: "far too wide for this".to_owned(),
            look: Look {
                size: 12.0,
                weight: Weight::Regular,
                colour: INK,
                align,
            },
        };
        let page = drawn(vec![
            Shape::Image {
                x: 38,
                y: 18,
                raster,
                title: String::new(),
            },
            text(Align::Start),
            text(Align::Middle),
            text(Align::End),
        ]);
        assert_eq!(count(&page, RED), 4);
        assert_eq!(page.pixels.len(), 40 * 20 * 3);
    }
}
