//! Renders a picture to one self-contained SVG file: images as PNGs, labels as text, with the font.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

use super::VisualizeError;
use super::colour::{PAGE, Rgb};
use super::font::Weight;
use super::picture::{Align, Picture, Raster, Shape};
use report::escape;

/// Renders a picture to an `<svg>` element.
pub(super) fn render(picture: &Picture) -> Result<String, VisualizeError> {
    let (width, height) = (picture.width, picture.height);
    let mut svg = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\">\n<title>{}</title>\n<style>{}</style>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"{}\"/>",
        escape(&picture.description),
        style(),
        hex(PAGE),
    );
    for shape in &picture.shapes {
        let _ = match shape {
            Shape::Image {
                x,
                y,
                raster,
                title,
            } => writeln!(
                svg,
                "<image x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" \
                 href=\"data:image/png;base64,{}\"><title>{}</title></image>",
                raster.width,
                raster.height,
                STANDARD.encode(png(raster)?),
                escape(title),
            ),
            Shape::Fill { area, colour } => writeln!(
                svg,
                "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\"/>",
                area.x,
                area.y,
                area.width,
                area.height,
                hex(*colour),
            ),
            Shape::Frame {
                area,
                thickness,
                colour,
            } => {
                // A stroke is centred on its line.
                let half = f64::from(*thickness) / 2.0;
                writeln!(
                    svg,
                    "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" \
                     stroke=\"{}\" stroke-width=\"{thickness}\"/>",
                    f64::from(area.x) - half,
                    f64::from(area.y) - half,
                    area.width + thickness,
                    area.height + thickness,
                    hex(*colour),
                )
            }
            Shape::Text {
                x,
                baseline,
                text,
                look,
            } => writeln!(
                svg,
                "<text x=\"{x}\" y=\"{baseline}\" font-size=\"{}\" font-weight=\"{}\" fill=\"{}\" \
                 text-anchor=\"{}\">{}</text>",
                look.size,
                look.weight.css(),
                hex(look.colour),
                match look.align {
                    Align::Start => "start",
                    Align::Middle => "middle",
                    Align::End => "end",
                },
                escape(text),
            ),
        };
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn style() -> String {
    let faces = Weight::ALL.map(|weight| {
        format!(
            "@font-face {{ font-family: Inter; font-weight: {}; \
             src: url(data:font/ttf;base64,{}); }}\n",
            weight.css(),
            STANDARD.encode(weight.file())
        )
    });
    format!(
        "{}text {{ font-family: Inter, Helvetica, Arial, sans-serif; }}",
        faces.concat()
    )
}

fn hex([r, g, b]: Rgb) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
}

fn png(raster: &Raster) -> Result<Vec<u8>, VisualizeError> {
    let mut bytes = Vec::new();
    let encoder =
        PngEncoder::new_with_quality(&mut bytes, CompressionType::Best, FilterType::Adaptive);
    encoder
        .write_image(
            &raster.pixels,
            raster.width,
            raster.height,
            ExtendedColorType::Rgb8,
        )
        .map_err(VisualizeError::Encode)?;
    Ok(bytes)
}
