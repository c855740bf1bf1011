//! Draws a picture with plotters as PNG pixels or as SVG.
//!
//! Maps are images whose pixels are computed: they are copied into the PNG and embedded in the SVG, below everything
//! that plotters draws.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use maud::{Markup, PreEscaped, html};
use plotters::backend::DrawingBackend;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{Rectangle, Text};
use plotters::prelude::{BitMapBackend, RGBColor, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, TextStyle};
use report::markup::{printable, svg_content};

use super::colour::PAGE;
use super::error::VisualizeError;
use super::font::{FAMILY, Fonts, SIZE_PER_EM, Weight};
use super::picture::{Align, Look, Picture, PlacedImage, Rect, Shape};

/// The distance in pixels from the top of a text to its baseline, for a font of this size of plotters. It depends on the
/// backend.
type Baseline = fn(f64) -> f64;

const BITMAP: Baseline = |size| (size / 2.0).floor();
// The text has `dy="0.76em"`.
const SVG: Baseline = |size| (0.76 * size / SIZE_PER_EM).round();

/// Draws a picture as RGB bytes `[height, width, 3]`.
///
/// # Errors
/// Plotters failed.
pub(super) fn pixels(picture: &Picture, fonts: &Fonts) -> Result<Vec<u8>, VisualizeError> {
    let (width, height) = (picture.width, picture.height);
    let mut pixels = PAGE.repeat(width as usize * height as usize);
    {
        let mut backend = BitMapBackend::with_buffer(&mut pixels, (width, height));
        for image in &picture.images {
            backend
                .blit_bitmap(
                    (image.x as i32, image.y as i32),
                    (image.width, image.height),
                    &image.pixels,
                )
                .map_err(VisualizeError::draw)?;
        }
        let area = backend.into_drawing_area();
        draw(picture, fonts, &area, BITMAP).map_err(VisualizeError::draw)?;
        area.present().map_err(VisualizeError::draw)?;
    }
    Ok(pixels)
}

/// Draws a picture as one self-contained SVG file: images as PNGs, labels as text, with the font.
///
/// # Errors
/// Plotters failed, or an image cannot be encoded.
pub(super) fn svg(picture: &Picture, fonts: &Fonts) -> Result<String, VisualizeError> {
    let (width, height) = (picture.width, picture.height);
    let mut drawn = String::new();
    {
        let area = SVGBackend::with_string(&mut drawn, (width, height)).into_drawing_area();
        draw(picture, fonts, &area, SVG).map_err(VisualizeError::draw)?;
        area.present().map_err(VisualizeError::draw)?;
    }
    let images: Result<Vec<Markup>, VisualizeError> = picture.images.iter().map(embedded).collect();
    let [r, g, b] = PAGE;
    let svg = html! {
        svg xmlns="http://www.w3.org/2000/svg" width=(width) height=(height)
            viewBox={ "0 0 " (width) " " (height) } role="img" {
            title { (picture.description) }
            style { (PreEscaped(style())) }
            rect width=(width) height=(height) fill={ "rgb(" (r) "," (g) "," (b) ")" } {}
            @for image in images? { (image) }
            (PreEscaped(svg_content(&drawn)))
        }
    };
    Ok(printable(&svg.into_string()) + "\n")
}

/// An `<image>` element.
fn embedded(image: &PlacedImage) -> Result<Markup, VisualizeError> {
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Best, FilterType::Adaptive)
        .write_image(
            &image.pixels,
            image.width,
            image.height,
            ExtendedColorType::Rgb8,
        )
        .map_err(VisualizeError::Encode)?;
    let png = STANDARD.encode(png);
    Ok(html! {
        image x=(image.x) y=(image.y) width=(image.width) height=(image.height)
            href={ "data:image/png;base64," (PreEscaped(png)) } { title { (image.title) } }
    })
}

/// Style rules that embed the font.
fn style() -> String {
    let faces = Weight::ALL.map(|weight| {
        format!(
            "@font-face {{ font-family: {FAMILY}; font-weight: {}; src: url(data:font/ttf;base64,{}); }}\n",
            weight.css(),
            STANDARD.encode(weight.file())
        )
    });
    format!(
        "{}text {{ font-family: {FAMILY}, Helvetica, Arial, sans-serif; }}",
        faces.concat()
    )
}

/// Draws the shapes of a picture.
fn draw<B: DrawingBackend>(
    picture: &Picture,
    fonts: &Fonts,
    area: &DrawingArea<B, Shift>,
    baseline_of: Baseline,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    for shape in &picture.shapes {
        match shape {
            Shape::Fill { area: rect, colour } => fill(area, *rect, *colour)?,
            Shape::Frame {
                area: rect,
                thickness,
                colour,
            } => {
                for side in rect.frame(*thickness) {
                    fill(area, side, *colour)?;
                }
            }
            Shape::Text {
                x,
                baseline,
                text,
                look,
            } => {
                let font = fonts.font(look.size, look.weight);
                let top = f64::from(*baseline) - baseline_of(font.get_size());
                let style = TextStyle {
                    font,
                    color: colour_of(look).to_backend_color(),
                    pos: Pos::new(anchor(look.align), VPos::Top),
                };
                let position = (*x as i32, top as i32);
                area.draw(&Text::new(text.as_str(), position, style))?;
            }
        }
    }
    Ok(())
}

fn fill<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    rect: Rect,
    [r, g, b]: [u8; 3],
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    // The second corner is outside.
    let corners = [
        (rect.x as i32, rect.y as i32),
        ((rect.x + rect.width) as i32, (rect.y + rect.height) as i32),
    ];
    area.draw(&Rectangle::new(corners, RGBColor(r, g, b).filled()))
}

fn colour_of(look: &Look) -> RGBColor {
    let [r, g, b] = look.colour;
    RGBColor(r, g, b)
}

fn anchor(align: Align) -> HPos {
    match align {
        Align::Start => HPos::Left,
        Align::Middle => HPos::Center,
        Align::End => HPos::Right,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::visualize::colour::{INK, Rgb};

    const RED: Rgb = [255, 0, 0];
    const WIDTH: u32 = 40;

    fn drawn(images: Vec<PlacedImage>, shapes: Vec<Shape>) -> (Vec<u8>, String) {
        let picture = Picture {
            width: WIDTH,
            height: 20,
            description: "<a>".to_owned(),
            images,
            shapes,
        };
        let fonts = Fonts::embedded().unwrap();
        let pixels = pixels(&picture, &fonts).unwrap();
        assert_eq!(pixels.len(), WIDTH as usize * 20 * 3);
        (pixels, svg(&picture, &fonts).unwrap())
    }

    fn count(pixels: &[u8], colour: Rgb) -> usize {
        let pixels = pixels.chunks_exact(3);
        pixels.filter(|pixel| *pixel == colour).count()
    }

    fn pixel(pixels: &[u8], x: u32, y: u32) -> &[u8] {
        let start = ((y * WIDTH + x) * 3) as usize;
        &pixels[start..start + 3]
    }

    fn text(x: u32, baseline: u32, text: &str, align: Align) -> Shape {
        Shape::Text {
            x,
            baseline,
            text: text.to_owned(),
            look: Look {
                size: 12.0,
                weight: Weight::Regular,
                colour: INK,
                align,
            },
        }
    }

    #[test]
    fn a_frame_does_not_cover_its_area() {
        let area = Rect {
            x: 10,
            y: 5,
            width: 4,
            height: 3,
        };
        let frame = Shape::Frame {
            area,
            thickness: 2,
            colour: RED,
        };
        let (page, _) = drawn(Vec::new(), vec![frame]);
        assert_eq!(count(&page, RED), 8 * 7 - 4 * 3);
        assert_eq!(pixel(&page, 10, 5), PAGE);
        assert_eq!(pixel(&page, 13, 7), PAGE);
        assert_eq!(pixel(&page, 9, 5), RED);
        assert_eq!(pixel(&page, 15, 9), RED);
    }

    #[test]
    fn the_svg_has_the_same_rectangles() {
        let area = Rect {
            x: 3,
            y: 4,
            width: 5,
            height: 6,
        };
        let (page, svg) = drawn(Vec::new(), vec![Shape::Fill { area, colour: RED }]);
        assert_eq!(count(&page, RED), 5 * 6);
        assert!(
            svg.contains("x=\"3\" y=\"4\" width=\"5\" height=\"6\""),
            "{svg}"
        );
        assert!(svg.contains("<title>&lt;a&gt;</title>"));
    }

    #[test]
    fn shapes_are_clipped_at_the_edges_of_the_page() {
        let image = PlacedImage {
            x: 38,
            y: 18,
            width: 4,
            height: 4,
            pixels: RED.repeat(16),
            title: String::new(),
        };
        let wide = |align| text(2, 2, "far too wide for this", align);
        let texts = [Align::Start, Align::Middle, Align::End].map(wide);
        let (page, _) = drawn(vec![image], texts.into());
        assert_eq!(count(&page, RED), 4);
    }

    #[test]
    fn letters_stand_on_the_baseline() {
        let (page, _) = drawn(Vec::new(), vec![text(5, 15, "H", Align::Start)]);
        let has_ink = |y: u32| (0..WIDTH).any(|x| pixel(&page, x, y)[0] < 128);
        let rows: Vec<u32> = (0..20).filter(|&y| has_ink(y)).collect();
        let (top, bottom) = (rows[0], rows[rows.len() - 1]);
        assert!(
            (14..=15).contains(&bottom) && (5..=7).contains(&top),
            "{rows:?}"
        );
    }
}
