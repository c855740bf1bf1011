//! What each encoder of a sweep sees in a few of its images, for the report.

use alignment::SpatialNorm;
use encoders::Encoder;

use crate::context::Context;
use crate::planned::Planned;
use evaluation::evenly_spaced;
use evaluation::visualize::{Anchor, Row, Sheet, TitledImages, VisualizeError};
use report::encoder_sheet;

const IMAGES: u64 = 2;

/// Draws the sheet of `encoder` into the run folder, unless it is there. A sheet that cannot be
/// drawn is a picture less, and no failure of a cell.
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
            // Writing the sheet says what is wrong, with its path.
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
        tracing::warn!("no sheet of {name}: {error}");
    }
}
