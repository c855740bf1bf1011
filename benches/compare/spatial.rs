//! The spatial metrics case, on the tokens that `inputs` wrote.

use std::fs;
use std::hint::black_box;
use std::path::Path;

use benches::inputs::{GRID, WIDTH};
use metrics::spatial::{Grid, SpatialMetrics, SpatialOptions, evaluate_images};
use ndarray::{Array2, Array3};

use crate::{Case, Outcome, inputs_folder};

const IMAGES: usize = 64;
const TOKENS: &str = "tokens.f32";
const MASKS: &str = "masks.u8";

/// Writes tokens as little-endian float32, and masks as one byte per token.
pub fn write_inputs(folder: &Path) -> Outcome<()> {
    let (tokens, masks) = benches::inputs::tokens(IMAGES, 0);
    let tokens: Vec<u8> = tokens
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    fs::write(folder.join(TOKENS), tokens)?;
    let masks: Vec<u8> = masks
        .iter()
        .map(|&foreground| u8::from(foreground))
        .collect();
    Ok(fs::write(folder.join(MASKS), masks)?)
}

fn read_inputs() -> Outcome<(Array3<f32>, Array2<bool>)> {
    let folder = inputs_folder()?;
    let bytes = fs::read(folder.join(TOKENS))?;
    let (values, _) = bytes.as_chunks::<4>();
    let values = values
        .iter()
        .map(|&bytes| f32::from_le_bytes(bytes))
        .collect();
    let tokens = Array3::from_shape_vec((IMAGES, GRID * GRID, WIDTH), values)?;
    let masks = fs::read(folder.join(MASKS))?;
    let masks = masks.into_iter().map(|byte| byte != 0).collect();
    Ok((
        tokens,
        Array2::from_shape_vec((IMAGES, GRID * GRID), masks)?,
    ))
}

fn evaluate(tokens: &Array3<f32>, masks: &Array2<bool>) -> Outcome<Vec<SpatialMetrics>> {
    let grid = Grid {
        height: GRID,
        width: GRID,
    };
    let options = SpatialOptions::default();
    Ok(evaluate_images(
        tokens.view(),
        grid,
        Some(masks.view()),
        &options,
    )?)
}

pub fn case() -> Outcome<Case> {
    let (tokens, masks) = read_inputs()?;
    Ok(Box::new(move || {
        black_box(evaluate(&tokens, &masks)?);
        Ok(())
    }))
}

/// The four metrics per image as JSON, `[[lds, cds, srss, rmsc], ..]`.
pub fn values() -> Outcome<String> {
    let (tokens, masks) = read_inputs()?;
    let images = evaluate(&tokens, &masks)?;
    let lines: Vec<String> = images
        .iter()
        .map(|image| {
            let srss = image.srss.map_or("NaN".to_owned(), |srss| srss.to_string());
            format!("[{}, {}, {srss}, {}]", image.lds, image.cds, image.rmsc)
        })
        .collect();
    Ok(format!("[{}]", lines.join(", ")))
}
