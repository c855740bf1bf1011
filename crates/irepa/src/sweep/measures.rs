//! What a cohort's encoder and samples are measured by.

use std::path::PathBuf;

use metrics::spatial::SpatialMetrics;

use super::active_cell::Active;
use super::progress::CellProgress;
use super::token_source::TokenSource;
use super::{Context, Planned, sheet};
use crate::evaluation::{self, EvaluationError, JudgeStage, Judges, ProbeData};

/// The judges of a cell's cohort.
pub(super) fn judges(
    context: &Context,
    planned: &Planned,
    progress: &CellProgress,
) -> Result<Judges, EvaluationError> {
    Judges::load(
        context.bank,
        &planned.cell.config,
        [&planned.training, &planned.reference],
        &reference_folder(context),
        context.interrupted,
        |stage| context.progress.stage(progress, &described(stage)),
    )
}

/// Where what is found in real images is kept in a run folder.
fn reference_folder(context: &Context) -> PathBuf {
    context.folder.join("reference")
}

pub(super) fn described(stage: JudgeStage) -> String {
    match stage {
        JudgeStage::Reference(done, total) => format!("reference features {done}/{total}"),
        JudgeStage::Samples(done, total) => format!("samples {done}/{total}"),
        JudgeStage::Features(done, total) => format!("features of samples {done}/{total}"),
    }
}

/// What is measured of a cohort's encoder.
#[derive(Default)]
pub(super) struct EncoderFigures {
    pub(super) spatial: Option<SpatialMetrics>,
    pub(super) linear_probe: Option<f64>,
}

/// LDS, CDS, SRSS, RMSC and the accuracy of a linear probe of the encoder that the cells align with, and
/// its sheet.
pub(super) fn measure_encoder(
    context: &Context,
    first: &Active,
    source: &TokenSource,
) -> Result<EncoderFigures, EvaluationError> {
    let Planned {
        cell,
        training,
        reference,
        ..
    } = first.planned;
    let config = &cell.config;
    let evaluate = &config.evaluate;
    let mut figures = EncoderFigures::default();
    // Tokens of several encoders together have no grid of their own.
    let names = config.alignment.encoders();
    let [name] = names.as_slice() else {
        return Ok(figures);
    };
    if evaluate.spatial_images == 0 && evaluate.probe_images == 0 {
        return Ok(figures);
    }
    let stage = |text: &str| context.progress.stage(&first.progress, text);
    stage("spatial metrics");
    let from_bank;
    let encoder = match source.loaded().next() {
        Some(encoder) => encoder,
        None => {
            let precision = config.alignment.encoder_precision;
            from_bank = context
                .bank
                .load_until(context.interrupted, name, config.data.resolution, precision)?
                .ok_or(EvaluationError::Interrupted)?;
            from_bank.as_ref()
        }
    };
    sheet::draw(context, first.planned, encoder);
    if evaluate.spatial_images > 0 {
        figures.spatial = Some(evaluation::spatial_metrics(
            encoder,
            reference,
            config,
            evaluate.spatial_images,
            context.device,
            context.interrupted,
        )?);
    }
    if evaluate.probe_images > 0 {
        let identity = format!(
            "{}-{:?}",
            context.bank.identity(&names, config.data.resolution)?,
            config.alignment.encoder_precision
        );
        let data = ProbeData {
            training,
            held_out: reference,
            images: evaluate.probe_images,
            cache: Some(&reference_folder(context)),
        };
        figures.linear_probe = evaluation::probe(
            encoder,
            &identity,
            data,
            config,
            context.device,
            context.interrupted,
            |done, total| stage(&format!("linear probe {done}/{total}")),
        )?
        .map(|accuracy| accuracy.patch);
    }
    Ok(figures)
}
