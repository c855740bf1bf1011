//! Measures a cohort's encoder, and loads the judges that measure its samples.

use std::path::PathBuf;

use metrics::figures::{Figure, Figures};

use crate::context::Context;
use crate::planned::Planned;
use crate::sheet;
use crate::token_source::TokenSource;
use evaluation::{self, EvaluationError, JudgeStage, Judges, ProbeData};

/// Loads the judges that measure the samples of a cell's cohort.
pub(crate) fn judges(context: &Context, planned: &Planned) -> Result<Judges, EvaluationError> {
    Judges::load(
        context.bank,
        &planned.cell.config,
        [&planned.training, &planned.reference],
        &reference_folder(context),
        context.interrupted,
        |stage| context.progress.stage(&planned.cell.id, &describe(stage)),
    )
}

/// The folder of cached statistics and features of real images, in the run folder.
fn reference_folder(context: &Context) -> PathBuf {
    context.folder.join("reference")
}

/// A stage as text for the progress display.
pub(crate) fn describe(stage: JudgeStage) -> String {
    match stage {
        JudgeStage::Reference(done, total) => format!("reference features {done}/{total}"),
        JudgeStage::Samples(done, total) => format!("samples {done}/{total}"),
        JudgeStage::Features(done, total) => format!("features of samples {done}/{total}"),
    }
}

/// Measures LDS, CDS, SRSS, RMSC and the accuracy of a linear probe of the encoder that the cells align with, and draws
/// its sheet. Nothing is measured if the cells align with no encoder or with several.
pub(crate) fn measure_encoder(
    context: &Context,
    planned: &Planned,
    source: &TokenSource,
) -> Result<Figures, EvaluationError> {
    let Planned {
        cell,
        training,
        reference,
        ..
    } = planned;
    let config = &cell.config;
    let evaluate = &config.evaluate;
    let mut figures = Figures::default();
    // The joined tokens of several encoders have no grid.
    let names = config.alignment.encoders();
    let [name] = names.as_slice() else {
        return Ok(figures);
    };
    if evaluate.spatial_images == 0 && evaluate.probe_images == 0 {
        return Ok(figures);
    }
    let stage = |text: &str| context.progress.stage(&cell.id, text);
    stage("spatial metrics");
    let from_bank;
    let encoder = match source.loaded().next() {
        Some(encoder) => encoder,
        None => {
            let precision = config.alignment.encoder_precision_on(context.device);
            from_bank = context
                .bank
                .load_until(context.interrupted, name, config.data.resolution, precision)?
                .ok_or(EvaluationError::Interrupted)?;
            from_bank.as_ref()
        }
    };
    sheet::draw(context, planned, encoder);
    if evaluate.spatial_images > 0 {
        let spatial = evaluation::spatial_metrics(
            encoder,
            reference,
            config,
            evaluate.spatial_images,
            context.device,
            context.interrupted,
        )?;
        figures.extend(spatial.figures().iter());
    }
    if evaluate.probe_images > 0 {
        let identity = format!(
            "{}-{:?}",
            context.bank.identity(&names, config.data.resolution)?,
            config.alignment.encoder_precision_on(context.device)
        );
        let data = ProbeData {
            training,
            held_out: reference,
            images: evaluate.probe_images,
            cache: Some(&reference_folder(context)),
        };
        let accuracy = evaluation::probe(
            encoder,
            &identity,
            data,
            config,
            context.device,
            context.interrupted,
            |done, total| stage(&format!("linear probe {done}/{total}")),
        )?;
        figures.set(Figure::LinearProbe, accuracy.map(|accuracy| accuracy.patch));
    }
    Ok(figures)
}
