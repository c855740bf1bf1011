//! Draws a sheet of similarity maps and principal components for each encoder of a sweep, for the report.

use alignment::SpatialNorm;
use encoders::Encoder;

use crate::context::Context;
use crate::planned::Planned;
use data::evenly_spaced;
use evaluation::visualize::{Anchor, Row, Sheet, TitledImages, VisualizeError};
use report::encoder_sheet;

/// Number of images on a sheet.
const IMAGES: u64 = 2;

/// Draws the sheet of `encoder` into the run folder, unless it exists. A sheet that cannot be drawn is logged as a
/// warning and does not fail the cell.
pub(crate) fn draw(context: &Context, planned: &Planned, encoder: &dyn Encoder) {
    let name = encoder.spec().name.clone();
    let path = encoder_sheet(&context.folder, &name);
    if path.exists() {
        return;
    }
    let drawn = || -> Result<(), VisualizeError> {
        let dataset = planned.reference.as_ref();
        let ids = evenly_spaced(IMAGES.min(dataset.len()), dataset.len());
        let resolution = planned.cell.config.data.resolution;
        let images = TitledImages::of_dataset(dataset, &ids, resolution)?;
        let norm = SpatialNorm::default();
        let row = Row::new(encoder, &images, &[Anchor::Auto], &norm, context.device)?;
        if let Some(folder) = path.parent() {
            // If this fails, writing the sheet fails with an error that names the path.
            let _created = std::fs::create_dir_all(folder);
        }
        let sheet = Sheet {
            images,
            rows: vec![row],
            norm,
            smooth: false,
        };
        sheet.write(&path)
    };
    if let Err(error) = drawn() {
        tracing::warn!("cannot draw the sheet of {name}: {error}");
    }
}
