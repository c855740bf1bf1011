//! Renders a picture to one self-contained SVG file: images as PNGs, labels as text, with the font.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use maud::{Markup, PreEscaped, html};

use super::VisualizeError;
use super::colour::{PAGE, Rgb};
use super::font::Weight;
use super::picture::{Align, Picture, Raster, Shape};
use report::markup::printable;

/// Renders a picture to an `<svg>` element.
pub(super) fn render(picture: &Picture) -> Result<String, VisualizeError> {
    let (width, height) = (picture.width, picture.height);
    let shapes: Result<Vec<Markup>, VisualizeError> = picture.shapes.iter().map(element).collect();
    let svg = html! {
        svg xmlns="http://www.w3.org/2000/svg" width=(width) height=(height)
            viewBox={ "0 0 " (width) " " (height) } role="img" {
            title { (picture.description) }
            style { (PreEscaped(style())) }
            rect width=(width) height=(height) fill=(hex(PAGE)) {}
            @for shape in shapes? { (shape) }
        }
    };
    Ok(printable(&svg.into_string()) + "\n")
}

fn element(shape: &Shape) -> Result<Markup, VisualizeError> {
    Ok(match shape {
        Shape::Image {
            x,
            y,
            raster,
            title,
        } => {
            let png = STANDARD.encode(png(raster)?);
            html! {
                image x=(x) y=(y) width=(raster.width) height=(raster.height)
                    href={ "data:image/png;base64," (PreEscaped(png)) } { title { (title) } }
            }
        }
        Shape::Fill { area, colour } => html! {
            rect x=(area.x) y=(area.y) width=(area.width) height=(area.height) fill=(hex(*colour)) {}
        },
        Shape::Frame {
            area,
            thickness,
            colour,
        } => {
            // A stroke is centred on its line.
            let half = f64::from(*thickness) / 2.0;
            html! {
                rect x=(f64::from(area.x) - half) y=(f64::from(area.y) - half) width=(area.width + thickness)
                    height=(area.height + thickness) fill="none" stroke=(hex(*colour)) stroke-width=(thickness) {}
            }
        }
        Shape::Text {
            x,
            baseline,
            text,
            look,
        } => {
            let anchor = match look.align {
                Align::Start => "start",
                Align::Middle => "middle",
                Align::End => "end",
            };
            html! {
                text x=(x) y=(baseline) font-size=(look.size) font-weight=(look.weight.css()) fill=(hex(look.colour))
                    text-anchor=(anchor) { (text) }
            }
        }
    })
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
