//! Trains a single configuration in the same way as a sweep trains a cell.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use encoders::Registry;
use tch::Device;

use crate::cell_folder::CellFolder;
use crate::cohort::{self, Cohort};
use crate::config_file::ConfigError;
use crate::context::{Context, InitialWeights};
use crate::experiment::{Cell, PLAIN_VARIANT};
use crate::failure::report_not_run;
use crate::planned::{Datasets, empty_row, plan_cell};
use crate::progress::Progress;
use crate::ranks::{self, Ranks};
use crate::{SweepError, resume};
use evaluation::encoder_bank::EncoderBank;
use report::results::{ResultRow, Status};

/// Options of [`train`], as `runner train` takes them.
#[derive(Debug)]
pub struct TrainOptions {
    /// The configuration.
    pub config: training::Config,
    /// The file of the configuration, for error messages.
    pub origin: PathBuf,
    /// The run's folder.
    pub folder: PathBuf,
    /// `auto`, `cpu`, `cuda` or `cuda:N`. Several ranks have a device each, of the rank's number unless the name has one.
    pub device: String,
    /// The devices of the ranks of this machine, instead of `device`.
    pub devices: Option<Vec<Device>>,
    /// Initial weights; `None` for random ones.
    pub init: Option<InitialWeights>,
    /// The processes that train the model; `None` if this is the only one.
    pub ranks: Option<Arc<Ranks>>,
}

/// Trains one configuration in the same way as a sweep trains a cell. Returns `None` if it was interrupted. Of several
/// ranks, rank 0 writes the folder; the rows of the others have no figures.
///
/// # Errors
/// The configuration, the device, the data or the folder cannot be used. A failure of the run itself is not an error,
/// but a row with status `failed`.
pub fn train(
    options: &TrainOptions,
    registry: Registry,
    interrupted: &AtomicBool,
) -> Result<Option<ResultRow>, SweepError> {
    let ranks = options.ranks.as_deref();
    let local_rank = ranks.map_or(0, |ranks| ranks.world().local_rank);
    let device = ranks::device_of(&options.device, options.devices.as_deref(), local_rank)
        .map_err(|source| SweepError::Device {
            name: options.device.clone(),
            source,
        })?;
    let mut config = options.config.clone();
    config.alignment.choose_precision(device);
    let config = &config;
    let judge = Some(config.evaluate.fd_encoder.clone()).filter(|name| !name.is_empty());
    for name in config.alignment.encoders().into_iter().chain(judge) {
        registry
            .check_name(&name)
            .map_err(|error| ConfigError::Name {
                origin: format!(
                    "{}: `alignment.encoder` or `evaluate.fd_encoder`",
                    options.origin.display()
                ),
                message: error.to_string(),
            })?;
    }
    let bank = EncoderBank::new(registry, device);
    if let Some(message) = bank.missing(config) {
        let origin = options.origin.display();
        // Messages about files name their key themselves.
        let origin = match message.starts_with('`') {
            true => origin.to_string(),
            false => format!("{origin}: `alignment.encoder`"),
        };
        return Err(SweepError::Config(ConfigError::Name { origin, message }));
    }
    let cell = Cell {
        id: options.folder.file_name().map_or_else(
            || "run".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        ),
        encoder: config.alignment.encoder.clone(),
        recipe: String::new(),
        model: config.model.name.clone(),
        variant: PLAIN_VARIANT.to_owned(),
        seed: config.train.seed,
        config: config.clone(),
    };
    let mut planned = plan_cell(
        &cell,
        &options.folder,
        &bank,
        &mut Datasets::default(),
        &options.origin,
    )?;
    planned.folder = CellFolder::at(&options.folder);
    let context = Context {
        init: options.init.as_ref(),
        ranks,
        ..Context::new(device, &bank, &options.folder, interrupted)
    };
    if let Some(ranks) = ranks {
        let shared = training::rows(&config.train, ranks.world());
        shared.map_err(|source| SweepError::Shared {
            origin: options.origin.clone(),
            source: Box::new(source),
        })?;
        ranks.check_device(device)?;
        ranks.compare(&planned)?;
        if !ranks.is_first() {
            return Ok(match ranks::follow(&context, &planned, ranks) {
                Ok(()) => Some(empty_row(&cell, Status::Done)),
                Err(reason) => Some(failed_row(&cell, reason.0)),
            });
        }
    }
    planned.previous = planned.folder.result()?;
    if let Some(reason) = resume::obstacle(&planned)? {
        let folder = options.folder.clone();
        return Err(SweepError::Resume { folder, reason });
    }
    fs::create_dir_all(&options.folder).map_err(|source| SweepError::Out {
        path: options.folder.clone(),
        source,
    })?;
    let folder = planned.folder.clone();
    let cohorts = Cohort::group(vec![planned]);
    let context = Context {
        progress: Progress::new(1),
        ..context
    };
    for cohort in &cohorts {
        for held in cohort::run(&context, cohort.cells.iter().collect()) {
            report_not_run(&context, held.planned, &held.reason);
        }
    }
    context.progress.finish();
    if interrupted.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let failure = context.into_failures().remove(&cell.id);
    Ok(match failure {
        None => folder.result()?.map(|result| result.row),
        Some(reason) => Some(failed_row(&cell, reason)),
    })
}

fn failed_row(cell: &Cell, reason: String) -> ResultRow {
    ResultRow {
        reason,
        ..empty_row(cell, Status::Failed)
    }
}
