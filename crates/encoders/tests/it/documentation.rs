//! The table of `docs/encoders.md` agrees with the catalogue.

use std::fs;
use std::path::Path;

use encoders::{KnownEncoder, Order, Preprocessing, Resize};

/// Name of the channel statistics.
fn statistics(preprocessing: &Preprocessing) -> &'static str {
    match preprocessing.mean {
        [0.485, ..] => "ImageNet",
        [0.5, ..] => "0.5",
        [0.0, ..] => "in the network",
        _ => "CLIP",
    }
}

fn preprocessing(known: &KnownEncoder) -> String {
    let preprocessing = &known.preprocessing;
    let antialias = match preprocessing.antialias {
        true => " antialiased",
        false => "",
    };
    let resize = match preprocessing.resize {
        Resize::None => return statistics(preprocessing).to_owned(),
        Resize::Bilinear => format!("bilinear{antialias}"),
        Resize::Bicubic => format!("bicubic{antialias}"),
    };
    match preprocessing.order {
        Order::NormalizeFirst => format!("{}, {resize}", statistics(preprocessing)),
        Order::ResizeFirst => format!("{resize}, {}", statistics(preprocessing)),
    }
}

fn row(known: &KnownEncoder) -> String {
    let side = known.grid_side();
    let input: Vec<String> = known
        .resolutions
        .iter()
        .map(|&side| known.input_size_at(side).to_string())
        .collect();
    let class = if known.class_token { "yes" } else { "no" };
    let gated = if known.gated { ", ask for access" } else { "" };
    format!(
        "| `{}` | {} | {:.0} M | {} | {side} x {side} | {class} | {} | {} | {} | {}{gated} |",
        known.name,
        known.family,
        known.params_m,
        known.width,
        input.join(" / "),
        preprocessing(known),
        known.weights,
        known.licence,
    )
}

#[test]
fn table_of_encoders_equals_the_catalogue() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/encoders.md");
    let page = fs::read_to_string(path).unwrap();
    let rows: Vec<String> = encoders::catalogue().iter().map(row).collect();
    let found: Vec<&str> = page
        .lines()
        .filter(|line| rows.iter().any(|row| row == line))
        .collect();
    assert!(found == rows, "the table must be\n{}", rows.join("\n"));
}
