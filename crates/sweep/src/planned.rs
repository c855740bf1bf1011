//! A cell of the plan with its data sets, identity and hash.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use data::{DataError, Dataset};
use evaluation::encoder_bank::{EncoderBank, IdentityError};
use evaluation::{ReferenceClasses, uses_reference_classes};
use report::results::{ResultRow, Status};

use crate::SweepError;
use crate::cell_folder::{CellFolder, CellResult};
use crate::experiment::Cell;

/// A cell with the inputs it was found to have.
pub(crate) struct Planned {
    pub(crate) cell: Cell,
    pub(crate) folder: CellFolder,
    pub(crate) training: Arc<dyn Dataset>,
    pub(crate) reference: Arc<dyn Dataset>,
    /// Data set, encoders and autoencoder, as [`training::Inputs::identity`] wants them.
    pub(crate) identity: String,
    /// Hash of configuration, data, encoders and judge.
    pub(crate) hash: String,
    /// The result that was there when it was planned. One that could not be read is named when the cell is opened.
    pub(crate) found: Option<CellResult>,
    /// Whether the run that is in the folder is to be set aside, once.
    pub(crate) is_fresh: AtomicBool,
}

impl Planned {
    /// How another process ended the cell since it was planned here.
    pub(crate) fn ended_meanwhile(&self) -> Option<ResultRow> {
        let result = self.folder.result().ok().flatten()?;
        let ended = result.hash == self.hash && self.found.as_ref() != Some(&result);
        ended.then_some(result.row)
    }
}

/// Data sets that are open, by folder and split.
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
pub(crate) fn prepare(
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
    let judges = bank
        .judges_identity(&cell.config)
        .map_err(IdentityError::from)?;
    let hash = cell
        .config
        .hash(&format!("{identity} {} {judges}", reference.fingerprint()));
    let folder = CellFolder::new(folder, &cell.id);
    Ok(Planned {
        found: folder.result().ok().flatten(),
        folder,
        cell: cell.clone(),
        training,
        reference,
        identity,
        hash,
        is_fresh: AtomicBool::new(false),
    })
}

/// A result that cannot be read is not taken for one that is not there: opening the cell names the reason.
pub(crate) fn is_done(planned: &Planned) -> bool {
    matches!(planned.folder.is_done(&planned.hash), Ok(true))
}

/// A row with no figures yet.
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
