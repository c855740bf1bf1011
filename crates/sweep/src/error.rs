//! The crate's one error type of commands.

use std::io;
use std::path::PathBuf;

use data::DataError;
use evaluation::encoder_bank::IdentityError;
use report::ReportError;
use report::results::ResultsError;
use thiserror::Error;
use torch_ext::TorchError;
use training::CheckpointError;

use crate::cell_folder::CellFolderError;
use crate::config_file::ConfigError;

/// Why a sweep did not start, or could not write its results.
#[derive(Debug, Error)]
pub enum SweepError {
    /// The experiment is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The device cannot be used.
    #[error("--device {name}: {source}")]
    Device {
        /// The name given.
        name: String,
        /// Why not.
        source: TorchError,
    },
    /// The data cannot be opened.
    #[error("{experiment}: `data.path`: {source}", experiment = experiment.display())]
    Data {
        /// The experiment file.
        experiment: PathBuf,
        /// Why not.
        source: Box<DataError>,
    },
    /// The reference images have classes that the training images lack.
    #[error("{experiment}: `data.reference_split`: {source}", experiment = experiment.display())]
    Classes {
        /// The experiment file.
        experiment: PathBuf,
        /// The first difference.
        source: Box<DataError>,
    },
    /// `--only` is no glob, or matches nothing.
    #[error("--only {glob}: {reason}")]
    Only {
        /// The glob.
        glob: String,
        /// What is wrong.
        reason: String,
    },
    /// The run folder cannot be written.
    #[error("cannot write {}: {source}; choose another folder with --out", path.display())]
    Out {
        /// The folder or file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A run was to be continued that does not go on with these settings.
    #[error(
        "{}: {reason}; give it the settings that it was begun with, or start another run with --out (--init \
         takes weights to start from, such as a checkpoint's ema.safetensors)",
        folder.display()
    )]
    Resume {
        /// The run's folder.
        folder: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file is there and cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A cell's folder cannot be read or written.
    #[error(transparent)]
    Cell(#[from] CellFolderError),
    /// The checkpoints of a run cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// It is not known what a cell's inputs are.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// `results.csv` cannot be written.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// The report cannot be written.
    #[error(transparent)]
    Report(#[from] ReportError),
}
