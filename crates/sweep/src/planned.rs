//! A cell of the plan with its data sets, identity and hash.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use data::{DataError, Dataset};
use evaluation::encoder_bank::EncoderBank;
use evaluation::{ReferenceClasses, uses_reference_classes};
use report::results::{ResultRow, Status};

use crate::SweepError;
use crate::cell_folder::{CellFolder, CellResult};
use crate::experiment::Cell;

/// A cell with its data sets, the identity of its inputs and its previous result.
pub(crate) struct Planned {
    pub(crate) cell: Cell,
    pub(crate) folder: CellFolder,
    pub(crate) training: Arc<dyn Dataset>,
    pub(crate) reference: Arc<dyn Dataset>,
    /// Identity of data set, encoders and autoencoder, for [`training::Inputs::identity`].
    pub(crate) identity: String,
    /// Hash of the configuration, the data sets, the encoders and the judges.
    pub(crate) hash: String,
    /// The result at the time of planning. A result that cannot be read is reported when the cell is opened.
    pub(crate) previous: Option<CellResult>,
    /// Whether the run in the folder must still be moved to `before/N` (`--fresh`).
    pub(crate) is_fresh: AtomicBool,
}

impl Planned {
    /// The row of the result that another process has written since this cell was planned, if any.
    pub(crate) fn ended_elsewhere(&self) -> Option<ResultRow> {
        let result = self.folder.result().ok().flatten()?;
        let ended = result.hash == self.hash && self.previous.as_ref() != Some(&result);
        ended.then_some(result.row)
    }

    /// Whether the folder still has the result that it had when this cell was planned.
    pub(crate) fn has_previous_result(&self) -> bool {
        self.previous.is_some() && self.folder.result().ok().flatten() == self.previous
    }
}

/// The open data sets, by folder and options.
#[derive(Default)]
pub(crate) struct Datasets {
    open: Vec<(PathBuf, data::OpenOptions, Arc<dyn Dataset>)>,
}

impl Datasets {
    fn get(
        &mut self,
        path: &Path,
        options: data::OpenOptions,
    ) -> Result<Arc<dyn Dataset>, DataError> {
        if let Some((_, _, dataset)) = self
            .open
            .iter()
            .find(|(folder, opened, _)| folder == path && *opened == options)
        {
            return Ok(Arc::clone(dataset));
        }
        let dataset = data::open(path, &options)?;
        self.open
            .push((path.to_owned(), options, Arc::clone(&dataset)));
        Ok(dataset)
    }
}

/// Opens the data sets of a cell and computes its identity and hash.
pub(crate) fn plan_cell(
    cell: &Cell,
    folder: &Path,
    bank: &EncoderBank,
    datasets: &mut Datasets,
    origin: &Path,
) -> Result<Planned, SweepError> {
    let data = &cell.config.data;
    let mut open = |split| {
        datasets
            .get(&data.path, split)
            .map_err(|source| SweepError::Data {
                experiment: origin.to_owned(),
                source: Box::new(source),
            })
    };
    let training = open(data.training_split())?;
    let reference = open(data.reference_split())?;
    if uses_reference_classes(&cell.config, bank) {
        ReferenceClasses::new(training.as_ref(), reference.as_ref()).map_err(|source| {
            SweepError::Classes {
                experiment: origin.to_owned(),
                source: Box::new(source),
            }
        })?;
    }
    let identity = format!(
        "{} {}{}",
        training.fingerprint(),
        bank.tokens_identity(&cell.config)?,
        bank.autoencoders().identity(&cell.config, bank.device())?
    );
    let judges = bank.judges_identity(&cell.config)?;
    let hash = cell
        .config
        .hash(&format!("{identity} {} {judges}", reference.fingerprint()));
    let folder = CellFolder::new(folder, &cell.id);
    Ok(Planned {
        previous: folder.result().ok().flatten(),
        folder,
        cell: cell.clone(),
        training,
        reference,
        identity,
        hash,
        is_fresh: AtomicBool::new(false),
    })
}

/// Whether a cell is done. A result that cannot be read counts as not done; opening the cell reports the error.
pub(crate) fn is_done(planned: &Planned) -> bool {
    matches!(planned.folder.is_done(&planned.hash), Ok(true))
}

/// A row of `results.csv` without measures.
pub(crate) fn empty_row(cell: &Cell, status: Status) -> ResultRow {
    ResultRow {
        encoder: cell.encoder.clone(),
        recipe: cell.recipe.clone(),
        model: cell.model.clone(),
        variant: cell.variant.clone(),
        seed: cell.seed,
        ..ResultRow::empty(&cell.id, status)
    }
}
