//! The loader case: batches of cropped JPEGs, decoded in the calling thread.

use std::hint::black_box;
use std::path::Path;

use data::{Cursor, Loader, LoaderConfig, OpenOptions};

use crate::{Case, Outcome, inputs_folder};

const FILES: usize = 200;
const FOLDER: &str = "jpegs";

pub fn write_inputs(folder: &Path) -> Outcome<()> {
    Ok(benches::inputs::write_jpegs(
        &folder.join(FOLDER),
        FILES,
        0,
    )?)
}

/// Loads a batch of 32 images.
pub fn case() -> Outcome<Case> {
    let dataset = data::open(inputs_folder()?.join(FOLDER), &OpenOptions::default())?;
    let config = LoaderConfig {
        batch_size: 32,
        resolution: 256,
        workers: 0,
        ..LoaderConfig::default()
    };
    let mut loader = Loader::new(dataset, config, Cursor::default())?;
    Ok(Box::new(move || {
        black_box(loader.next().ok_or("the stream has ended")??);
        Ok(())
    }))
}
